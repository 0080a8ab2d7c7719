"""docs/fields.md: a row for every field, and each row says what the code says of it."""

import re
import sys
from pathlib import Path

import jax
import pytest

from configs import common
from dasd_jax import cli, train
from dasd_jax.mesh import make_mesh

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fields.md"
FIELDS = {
    f"{group}.{name}": value for group, fields in common.base().to_dict().items() for name, value in fields.items()
}


def comments() -> dict[str, str]:
    """What configs/common.py says behind each field."""
    found, group = {}, ""
    for line in (ROOT / "configs" / "common.py").read_text().splitlines():
        if opened := re.match(r"    config\.(\w+) = ", line):
            group = opened[1]
        if field := re.match(r'            "(\w+)": .*?,  # (.*)', line):
            found[f"{group}.{field[1]}"] = field[2]
    return found


def rows() -> dict[str, tuple[str, ...]]:
    """Field → (default, meaning, a value that is refused, what was expected), as the page has them."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(r"`\w+\.\w+`", cells[0]):
            found[cells[0].strip("`")] = tuple(cells[1:])
    return found


@pytest.fixture
def refusal(monkeypatch, capsys, tmp_path):
    """What `train` says to a value of a field, through its door."""
    monkeypatch.setattr(train, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    monkeypatch.setattr(train.Trainer, "run", lambda self: None)

    def error_of(field: str, value: str) -> str:
        argv = ["--config=configs/qwen_math.py:tiny", f"--workdir={tmp_path / 'w'}", f"--config.{field}={value}"]
        monkeypatch.setattr(sys, "argv", ["train", *argv])
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as ended:
            cli.run(train.main)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1, error
        return error.removeprefix("error: ").rstrip("\n")

    return error_of


def test_every_field_stands_in_the_table_and_no_other():
    assert list(rows()) == list(comments())
    assert set(rows()) == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_row_says_what_the_code_says(field, refusal):
    default, meaning, bad, expected = rows()[field]
    assert default == f"`{FIELDS[field]!r}`"
    assert meaning == comments()[field]
    error = refusal(field, bad.strip("`"))
    assert field.split(".")[0] in error and error.endswith(expected), error
