"""The arrows between the rooms, held over the syntax trees: they go down only."""

import ast
import functools
from pathlib import Path

import pytest

from dasd_jax import config
from dasd_jax.methods import METHODS

PACKAGE = Path(__file__).parents[1] / "dasd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LAUNCHERS = sorted((PACKAGE.parent / "launchers").rglob("*.py"))
# What launchers may know of the package.
DOORS = {
    "cli",
    "config",
    "cost",
    "errors",
    "files",
    "hosts",
    "recorded",
    "terminal",
    "run.origin",
    "run.user_files",
    "run.workdir",
}
COMMANDS = {
    "train", "evaluate", "generate", "intervene", "check", "convert", "fetch", "prepare", "compile", "view", "report",
    "marker_polarity", "export", "select", "skills",
}  # fmt: skip

# What each room may import of the package, beside errors, fields, formats, batch, mesh and hosts, which everyone may.
ARROWS = {
    "errors": set(),
    "fields": set(),
    "field_names": set(),
    "guard_fields": set(),
    "credentials": set(),
    "formats": set(),
    "files": set(),
    "batch": set(),
    "mesh": set(),
    "hosts": set(),
    "terminal": set(),
    "quantised": set(),
    "vocab": {"quantised"},
    "model": {"quantised", "vocab", "model"},
    "cost": {"model", "cost"},
    "text": {"text"},
    "health": {"health"},
    "data": {"text", "data"},
    "rollout": {"vocab", "model", "cost", "rollout"},
    # Its workers draw a task's problem again from its source.
    "verify": {"data", "verify"},
    "objective": {"vocab", "objective"},
    "methods": {"objective", "methods"},
    # Its classes are handed to the rooms; it reads the names that it checks.
    "config": {"field_names", "guard_fields", "methods", "objective", "text"},
    "resolve": {"config", "methods"},
    "field_help": {"config", "field_names", "methods"},
    "config_files": {"config", "methods"},
    "recorded": {"config", "field_names", "files"},
    "learner": {"files", "vocab", "model", "objective", "config", "learner"},
    "run": {"files", "model", "cost", "text", "data", "rollout", "verify", "objective", "health"}
    | {"config", "credentials", "field_names", "recorded", "terminal", "learner", "run"},
    "__main__": set(),  # starts any command, by its name
    "show": {"files", "run", "text", "show"},  # of run its records alone: it starts without JAX
    "page": {"files", "health", "page", "run", "text"},
    "cli": {"config", "config_files", "credentials", "field_help", "field_names", "methods", "resolve", "terminal"},
}


def room(path: Path) -> str:
    """The folder of a file, or its own name at the top."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if parts[0] != "__init__" else "errors"


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Its syntax tree."""
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path, top_level_only: bool = False) -> frozenset[str]:
    """Full dotted names of what a file imports."""
    tree = parsed(path)
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@functools.cache
def imported_files(path: Path, top_level_only: bool = False) -> set[Path]:
    """The files of the package that a file imports; of a name in a module, the module."""
    found = set()
    for name in imports(path, top_level_only):
        if name.startswith("dasd_jax."):
            module = PACKAGE.parent.joinpath(*name.split("."))
            places = (module.with_suffix(".py"), module.parent.with_suffix(".py"), module.parent / "__init__.py")
            found.add(next(place for place in places if place in FILES))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_lies_below_them(path):
    here = room(path)
    if here in COMMANDS:
        return
    allowed = ARROWS[here] | {"errors", "fields", "formats", "batch", "mesh", "hosts"}
    used = {name.split(".")[1] for name in imports(path) if name.startswith("dasd_jax.")}
    assert used <= allowed, f"{here} may not import {sorted(used - allowed)}"


@pytest.mark.parametrize("path", FILES + LAUNCHERS, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_launchers_stand_beside_the_package_and_know_its_door_alone(path):
    names = imports(path)
    if path in FILES:
        assert not any(name.startswith("launchers") for name in names)
    else:
        known = {name.removeprefix("dasd_jax.") for name in names if name.startswith("dasd_jax.")}
        assert {name for name in known if name not in DOORS and name.split(".")[0] not in DOORS} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_flag_libraries_stay_at_the_door(path):
    foreign = {name.split(".")[0] for name in imports(path)}
    assert "absl" not in foreign
    assert "ml_collections" not in foreign or path.name in ("cli.py", "config_files.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_mesh_names_the_mesh_axes(path):
    if path.name == "mesh.py":
        return
    strings = {node.value for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant)} - {
        "data"
    }  # also a group of the configuration
    if path.name not in ("config.py",):
        assert not strings & {"fsdp", "tensor"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_importing_has_no_side_effects(path):
    """A module's body defines things; calls stand in definitions, assignments, or under the main guard."""
    for node in parsed(path).body:
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"{path}:{node.lineno}"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_method_is_named_in_its_file_and_in_one_dictionary_alone(path):
    """Of all other files only the declaration of objective.method names one, as its default.

    Some layouts of public data sets and wordings have the name of the method that they were made for.
    """
    if room(path) == "methods" or path.name in ("layouts.py", "wordings.py"):
        return
    strings = [node.value for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant)]
    expected = [config.default_method()] if path.name == "config.py" and path.parent == PACKAGE else []
    assert [text for text in strings if text in METHODS] == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_itself_through_others(path):
    seen, todo = set(), list(imported_files(path))
    while todo:
        if (file := todo.pop()) not in seen:
            seen.add(file)
            todo += imported_files(file)
    assert path not in seen


def test_the_verifier_starts_without_jax():
    """It and its worker processes load the package's light modules and no accelerator runtime."""
    seen, todo = set(), [PACKAGE / "verify" / "verifier.py", PACKAGE / "verify" / "worker.py"]
    while todo:
        seen.add(path := todo.pop())
        for name in imports(path, top_level_only=True):
            assert name.split(".")[0] not in ("jax", "flax", "optax", "orbax", "grain", "reasoning_gym", "math_verify")
        todo += imported_files(path, top_level_only=True) - seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_verification_knows_no_jax(path):
    """Only the journal reaches it, through `hosts`: one process writes and all read."""
    if room(path) == "verify":
        foreign = {name.split(".")[0] for name in imports(path)}
        assert "jax" not in foreign
        assert path.name == "journal.py" or not {"dasd_jax.hosts", "dasd_jax.mesh"} & imports(path)
