"""The command `dasd`, and the package as pip installs it: what it holds, and that it works elsewhere."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from dasd_jax import __main__ as dasd

ROOT = Path(__file__).parents[1]


def said(*words, **kwargs):
    """(exit code, stdout, stderr) of a command."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, **kwargs)
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------ dasd


def test_help_lists_every_command_with_what_it_does():
    """Whatever runs as a program in the package's folder, but for what only developers use."""
    code, out, error = said(sys.executable, "-m", "dasd_jax", "--help", cwd=ROOT)
    assert (code, error) == (0, "")
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("  ")}
    assert listed == dasd.commands()
    assert max(map(len, out.splitlines())) <= 80
    assert {"train", "check", "evaluate", "generate", "convert", "fetch", "prepare", "compile", "view"} <= set(listed)
    assert listed["train"] == "Post-trains a model" and all("python -m" not in does for does in listed.values())
    assert "field_help" not in listed


@pytest.mark.parametrize(
    ("word", "says"), [("trian", "did you mean train?"), ("xyz", "expected one of check, "), ("../train", "no such")]
)
def test_an_unknown_command_is_answered_with_the_nearest(word, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dasd", word])
    with pytest.raises(SystemExit) as ended:
        dasd.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"error: dasd '{word}': no such command") and says in error
    assert error.count("\n") == 1


def test_only_the_chosen_command_is_imported():
    """The list is read from files; JAX takes seconds to import, which `dasd view` does without."""
    script = (
        "import sys; from dasd_jax import __main__ as dasd; sys.argv = ['dasd', *sys.argv[1:]]\n"
        "try:\n    dasd.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(sorted({'jax', 'ml_collections', 'textual', 'dasd_jax.train'} & set(sys.modules)))"
    )
    for words in (["--help"], ["view", "--help"]):
        code, out, error = said(sys.executable, "-c", script, *words, cwd=ROOT)
        assert (code, error) == (0, "") and out.splitlines()[-1] == "[]"
    assert "usage: dasd view " in out


# ------------------------------------------------------------------------------------------------ the package


def test_the_metadata_has_every_room_and_the_packages_that_the_tests_need():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "dasd_jax").rglob("__init__.py")}
    assert set(metadata["tool"]["setuptools"]["packages"]) == rooms | {"dasd_jax.configs"}
    needed = (ROOT / "tests" / "requirements.txt").read_text().split()
    assert metadata["project"]["optional-dependencies"]["test"] == needed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the tracked files, built from a copy: setuptools writes beside its sources."""
    folder = tmp_path_factory.mktemp("build")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    pack = subprocess.run(
        ["tar", "--null", "--files-from=-", "-cf", "-"], cwd=ROOT, input=tracked, capture_output=True, check=True
    )
    (folder / "source").mkdir()
    subprocess.run(["tar", "-xf", "-"], cwd=folder / "source", input=pack.stdout, check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "./source"]
    code, out, error = said(*build, cwd=folder)
    assert code == 0, out + error
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_its_configurations(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = file.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "dasd_jax").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    configs = {f"dasd_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.*")}
    assert {name for name in names if ".dist-info/" not in name} == package | configs
    assert {"dasd_jax/health/markers/explore.txt", "dasd_jax/configs/tiny.jsonl"} <= names
    needed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    stated = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert len([line for line in stated if "extra ==" not in line]) == len(needed)
    for extra in ("cuda", "tpu", "test"):
        assert f"Provides-Extra: {extra}" in metadata
    assert any("jax[cuda12]" in line for line in stated) and any("pytest" in line for line in stated)


@pytest.mark.slow
def test_an_installed_package_works_outside_of_the_repository(wheel, tmp_path):
    """In an environment of its own that sees the packages of this one, of which dasd_jax is none."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", wheel]
    code, out, error = said(*install, cwd=tmp_path)
    assert code == 0, out + error
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    theirs = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "theirs.pth").write_text(theirs + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}

    def run(*words):
        return said(tmp_path / "venv" / "bin" / "dasd", *words, cwd=elsewhere, env=environment)

    code, out, error = said(python, "-c", "import dasd_jax; print(dasd_jax.__file__)", cwd=elsewhere, env=environment)
    assert out.startswith(str(site)), out + error
    code, out, error = run("train", "--config=qwen_math:tiny", "--print-config")
    assert (code, error) == (0, "") and '"preset": "qwen3_tiny"' in out
    code, out, error = run("check", "--config=qwen_math:tiny")
    assert (code, error) == (0, "") and "student prompt of the first problem" in out
    code, out, error = run("check", "--config=methods:tiny,method=rlsd")
    assert (code, error) == (0, "") and "problems: 48 read" in out
    code, _, error = run("check", "--config=configs/qwen_math.py:tiny")
    assert code == 2 and "did you mean --config=qwen_math?" in error
    code, out, error = run("train", "--config=qwen_math:tiny", "--config.run.steps=1")
    assert code == 0, error
    assert (elsewhere / "runs" / "qwen_math-tiny" / "done.json").is_file()
