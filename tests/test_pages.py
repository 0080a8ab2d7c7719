"""Code that stands in the documentation runs, and does what the page says."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dasd_jax.methods.dasd import DasdParams

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def code_of(page):
    """The Python blocks of a page as one text."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL))


def cells():
    """The notebook's cells."""
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_the_trainer_of_the_page_learns_and_gives_credit_as_grpo_without_a_teacher(capsys):
    page = {}
    exec(code_of("own_trainer.md"), page)
    rewards = page["rewards"]
    assert np.mean(rewards[-5:]) > 0.9 > 0.5 > np.mean(rewards[:5])
    assert "in the last five" in capsys.readouterr().out
    arrays = page["logits"], page["informed"].repeat(page["GROUP"], axis=0), page["tokens"], page["mask"]
    reward = np.tile(np.float32([1, 0]), len(page["mask"]) // 2)
    credit, _ = page["token_credit"](*arrays, reward, page["GROUP"], DasdParams(beta=0.0))
    advantage = (reward - 0.5) / (reward[: page["GROUP"]].std(ddof=1) + 1e-6)
    np.testing.assert_allclose(credit, np.broadcast_to(advantage[:, None], credit.shape), rtol=1e-5)
    with_teacher, metrics = page["token_credit"](*arrays, reward, page["GROUP"], DasdParams())
    assert metrics["router/attract_mass"] > 0 and np.abs(with_teacher - credit).max() > 1e-3


def test_the_notebook_is_small_and_shows_nothing_of_the_machine_it_ran_on():
    text = NOTEBOOK.read_text()
    assert len(text) < 150_000 and "image/" not in text
    outputs = json.dumps([cell.get("outputs") for cell in cells()])
    assert not re.search(r"/home/|/root|/tmp|/Users/", outputs)
    assert all(cell["outputs"] for cell in cells() if cell["cell_type"] == "code" and "print(" in str(cell["source"]))


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_order_on_the_tiny_model():
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    assert sources[0].startswith('MODEL = "smollm2"')
    sources[0] = 'MODEL = "tiny"'
    for source in sources:
        ast.parse(source)
    check = """
assert "<span" in coloured(row) and np.isfinite(change).all()
np.testing.assert_allclose(credit, tokens["credit"][row][keep], atol=1e-4)
print("ran through", np.abs(change).max() > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*sources, check])], cwd=NOTEBOOK.parent, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ran through True\n")
    assert "largest difference" in done.stdout
