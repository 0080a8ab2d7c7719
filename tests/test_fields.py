"""Every field: declared once, refused out of its range, and explained on a page that is made from the declarations."""

import dataclasses
from pathlib import Path

import pytest

from dasd_jax import field_help
from dasd_jax.config import GROUPS, declared, defaults, from_dict, names, older, unknown
from dasd_jax.errors import UserError
from dasd_jax.field_names import ELSEWHERE, MOVED, nearest
from dasd_jax.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "fields.md"
KINDS = [*GROUPS.values(), *dict.fromkeys(method.fields for method in METHODS.values())]
FIELDS = [(kind, each) for kind in KINDS for each in dataclasses.fields(kind)]
BAD = {int: [-2], float: [-1.0], bool: ["maybe"], str: ["?", "a\nb"], tuple[str, ...]: [("a\nb",)]}


def configuration(method="dasd", **changes):
    """The defaults of a method as a plain dictionary, with a source; changes as GROUP__FIELD."""
    raw = defaults(method)
    raw["data"]["sources"] = ("jsonl:x.jsonl",)
    for name, value in changes.items():
        group, _, field = name.partition("__")
        raw[group][field] = value
    return raw


@pytest.mark.parametrize(("kind", "each"), FIELDS, ids=lambda x: getattr(x, "name", getattr(x, "__name__", "")))
def test_a_value_out_of_range_is_refused_with_field_and_range(kind, each):
    allowed, name = each.metadata["range"], f"{kind.group}.{each.name}"
    for bad in BAD[each.type]:
        in_range = isinstance(bad, each.type) and allowed.fits(bad) if each.type in (int, float, str) else None
        if in_range and "\n" not in str(bad):
            continue  # a negative number may be one, and any text is but those with control characters
        with pytest.raises(UserError) as refused:
            kind(**{each.name: bad})
        assert str(refused.value).startswith(f"{name}: {bad!r}: expected ")
        if in_range is False and "\n" not in str(bad):
            assert str(refused.value).endswith(allowed.expected)


@pytest.mark.parametrize(("kind", "each"), FIELDS, ids=lambda x: getattr(x, "name", getattr(x, "__name__", "")))
def test_a_declaration_has_words_that_fit_the_table(kind, each):
    assert each.metadata["meaning"] and each.metadata["range"].expected
    assert not each.metadata["meaning"].endswith(".") and "\n" not in each.metadata["meaning"]


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_of_every_method_are_a_configuration(method):
    config = from_dict(configuration(method))
    assert config.objective.method == method and type(config.hp) is METHODS[method].fields
    assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("rollout__temperature", float("nan"), "a finite number"),
        pytest.param("rollout__temperature", 10**400, "a finite number", id="400 digits"),
        ("run__seed", 2**40, "a number of 32 bits"),
        pytest.param("run__seed", 10**5000, "a number of 32 bits", id="5000 digits"),
        ("run__seed", True, "a whole number"),
        ("run__seed", 1.0, "a whole number"),
        ("objective__dense_on_zero_adv", 1, "true or false"),
        ("data__sources", "jsonl:x", "tuple of texts"),
        ("data__sources", ("jsonl:x", 3), "tuple of texts"),
        ("objective__method", ["dasd"], "one of dasd"),
    ],
)
def test_a_value_of_another_type_is_refused(kind, value, expected):
    with pytest.raises(UserError, match=f"^{kind.replace('__', '.')}: .*: expected {expected}"):
        from_dict(configuration(**{kind: value}))


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    config = from_dict(configuration(objective__beta=1, data__sources=["jsonl:x"]))
    assert type(config.hp.beta) is float and config.data.sources == ("jsonl:x",)


def test_a_missing_or_unknown_field_is_refused_by_its_name():
    raw = configuration()
    del raw["run"]["steps"]
    with pytest.raises(UserError, match=r"^run\.steps: missing"):
        from_dict(raw)
    with pytest.raises(UserError, match=r"^run\.stpes: no such field; did you mean run\.steps\?"):
        from_dict(configuration(run__stpes=3))
    with pytest.raises(UserError, match="^loss: no such group: expected one of model, data"):
        from_dict({**configuration(), "loss": {}})
    with pytest.raises(UserError, match="^guards: missing"):
        from_dict({group: fields for group, fields in configuration().items() if group != "guards"})


def test_names_of_other_trainers_lead_to_fields_that_exist():
    every = {name for method in METHODS for name in names(method)}
    assert set(ELSEWHERE.values()) <= every
    # A field's own name comes before the table.
    assert not ELSEWHERE.keys() & {name.partition(".")[2] for name in every}


def test_moved_fields_are_gone_from_their_old_place_and_exist_at_the_new():
    every = {name for method in METHODS for name in names(method)}
    assert set(MOVED.values()) <= every and not MOVED.keys() & every


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lr", "optim.learning_rate"),
        ("optim.lr", "optim.learning_rate"),
        ("epochs", "run.steps"),
        ("batch-size", "rollout.problems"),
        ("max_length", "rollout.max_new_tokens"),
        ("max_tokens", "rollout.max_new_tokens"),
        ("rollout.max_new_token", "rollout.max_new_tokens"),
        ("num_generations", "rollout.rollouts"),
        ("group_size", "rollout.rollouts"),
        ("gradient_accumulation_steps", "optim.microbatches"),
        ("kl_coef", "objective.beta"),
        ("temperature", "rollout.temperature"),
        ("loss.beta", "objective.beta"),
        ("run.sed", "run.seed"),
        ("guard_window", "guards.window"),
        ("run.zzzzzz", ""),
    ],
)
def test_the_nearest_field_is_found_by_letters_and_by_meaning(wrong, meant):
    assert nearest(wrong, names("dasd")) == meant


def test_a_field_of_another_method_is_said_to_belong_to_it():
    assert unknown("objective.rho", "grpo") == "method grpo has no such field; it belongs to dasd"


def test_a_config_json_with_other_fields_is_older():
    raw = configuration()
    assert not older(raw)
    before = {group: fields for group, fields in raw.items() if group != "guards"}
    assert older(before) and older({**raw, "objective": {**raw["objective"], "method": "grpo"}}) and older({})


def test_the_page_is_made_from_the_declarations():
    assert PAGE.read_text() == field_help.page(), "make fields"


def test_the_page_has_every_field_of_every_method_once():
    rows = [line.split("|")[1].strip(" `") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(f"{kind.group}.{each.name}" for kind, each in FIELDS)
    assert set(rows) == {f"{g}.{f}" for method in METHODS for g, fields in declared(method).items() for f in fields}
