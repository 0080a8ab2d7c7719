"""The commands in the code blocks of README.md and launchers/README.md: each is understood as it stands there."""

import argparse
import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dasd_jax import cli
from dasd_jax.data.layouts import LAYOUTS
from dasd_jax.data.published import PUBLISHED

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "launchers/README.md")


def blocks(page: str) -> list[str]:
    """The code blocks of a page, continued lines joined."""
    found = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n\s*", "", block) for block in found]


def commands(page: str) -> list[list[str]]:
    """The words of every command of this repository, comments left out: module, then arguments."""
    found = []
    for line in (line for block in blocks(page) for line in block.splitlines()):
        match line.split()[:3]:
            case ["python", "-m", module, *_] if module.startswith(("dasd_jax", "launchers")):
                found.append(shlex.split(line, comments=True)[2:])
            case ["dasd", name, *_] if not name.startswith("-"):
                found.append([f"dasd_jax.{name}", *shlex.split(line, comments=True)[2:]])
    return found


COMMANDS = [pytest.param(words, id=" ".join(words)[:70]) for page in PAGES for words in commands(page)]
FLAGS_FILE = next(block for block in blocks("launchers/README.md") if block.startswith("--name="))


class Understood(Exception):
    """Raised in the place of what a command would do."""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that looks like the repository to a command, with the flags file of the page, from which it is run."""
    for name in ("configs", "launchers", "dasd_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my.flags").write_text(FLAGS_FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_on_a_page_is_understood(words, elsewhere, monkeypatch, capsys):
    """Commands of the launchers make their plan; the others read their flags and configuration and stop there."""
    module, *argv = words
    command = importlib.import_module(module)
    if module.startswith("launchers."):
        cut = argv.index("--") if "--" in argv else len(argv)
        command.main([*argv[:cut], *["--dry-run"] * ("--dry-run" not in argv[:cut]), *argv[cut:]])
        assert capsys.readouterr().out
        return
    # A run that the page has trained before.
    for folder in (folder for word in argv if (folder := word.removeprefix("--workdir=")).startswith("runs/")):
        left = cli.parse(cli.parser(""), ["--config=smollm2_math"]).config
        (elsewhere / folder).mkdir(parents=True)
        (elsewhere / folder / "config.json").write_text(json.dumps(left.to_dict()))
    parse = cli.parse

    def stop(reader):
        def reading(*args, **kwargs):
            reader(*args, **kwargs)
            raise Understood

        return reading

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr(cli, "parse", stop(parse))
    with pytest.raises(Understood):
        command.main(argv)


def test_the_pages_hold_commands_of_both_kinds():
    modules = {words.values[0][0] for words in COMMANDS}
    assert {"dasd_jax.train", "dasd_jax.prepare", "launchers.tpu_vm", "launchers.sweep"} <= modules


def test_the_data_sets_of_the_launchers_page_are_those_that_its_config_reads():
    made = {
        word.removeprefix("--output=")
        for words in commands("launchers/README.md")
        for word in words
        if word.startswith("--output=")
    }
    read = cli.parse(cli.parser(""), ["--config=qwen_math:1p7b,v5e-16"]).config.data
    assert {f"tfds:{folder}" for folder in made} == {*read.sources, *read.benchmarks}


def test_the_data_page_and_the_hints_name_the_same_files():
    rows = re.findall(r"--input=(\S+)\s+--output=data/(\w+)\s+# (\S+)", (ROOT / "docs" / "data.md").read_text())
    assert {name: (repository, tuple(files.split(","))) for files, name, repository in rows} == {
        name: (each.repository, each.files) for name, each in PUBLISHED.items()
    }
    layouts = {layout.name: layout.published_as for layout in LAYOUTS}
    for each in PUBLISHED.values():
        assert each.repository in layouts[each.layout]


def test_the_method_of_thirty_lines_applies_to_the_files():
    """The diff in docs/methods.md, as git reads it."""
    diff = re.search(r"^```diff\n(.*?)^```$", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    done = subprocess.run(["git", "apply", "--check", "-"], input=diff, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
