"""The fields of config.json that concern rotary embeddings, as transformers has written them since 4.40.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`, Olmo 3 by the kind of layer.
A file may have any of them, and all that it has must say the same: the versions differ in which of them they believe.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasd_jax.errors import UserError
from dasd_jax.model.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling, YarnScaling, yarn_magnitude

FULL, SLIDING = "full_attention", "sliding_attention"
_TYPES = {LinearScaling: "linear", Llama3Scaling: "llama3", YarnScaling: "yarn"}
# Of each type: the fields that it must have, and others that it may have.
_FIELDS = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (("factor",), ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
}
_ORIGINAL = "original_max_position_embeddings"
_OF_ANY_TYPE = {"rope_type", "type", "rope_theta", _ORIGINAL, "partial_rotary_factor", "finetuned"}


def refusal(path: Path, problem: str, expected: str) -> UserError:
    """The error about a folder."""
    return UserError(f"model.weights: {path} {problem}: expected {expected}")


def read(
    given: Mapping[str, Any], sliding: tuple[bool, ...], *, by_kind: bool, base: float, path: Path
) -> tuple[float, RopeScaling | None]:
    """(base, scaling of the layers with full attention).

    Args:
        given: the fields of config.json.
        sliding: whether each layer has sliding-window attention; empty if none has.
        by_kind: in this family the layers with full attention alone are scaled.
        base: the family's default.
        path: the folder, for errors.

    Raises:
        UserError: fields that are missing, contradict each other, or cannot be honoured.
    """
    used = [kind for kind in (FULL, SLIDING) if (kind == SLIDING) in (sliding or (False,))]
    places = {place: given[place] for place in ("rope_parameters", "rope_scaling") if given.get(place)}
    # {place: {kind of layer: (base, scaling)}}
    readings = {
        place: {kind: _read_one(_of_kind(place, content, kind, by_kind, path), given, base, path) for kind in used}
        for place, content in (places or {"rope_theta": {}}).items()
    }
    reading = next(iter(readings.values()))
    if any(other != reading for other in readings.values()):
        said = " and ".join(f"{place} {places[place]}" for place in places)
        raise refusal(path, f"has {said:.400}, which contradict each other", "one of them, or the same in both")
    bases = {found for found, _ in reading.values()}
    if len(bases) > 1:
        raise refusal(path, f"has rope_theta {sorted(bases)} by the kind of layer", "one for all layers")
    if SLIDING in reading and reading[SLIDING][1] is not None:
        raise refusal(path, "has both sliding-window layers and RoPE scaling of them", "at most one of them")
    scaling = reading[FULL][1] if FULL in reading else None
    if by_kind:
        _check_by_kind(given, SLIDING in used, base, scaling, path)
    return bases.pop(), scaling


def _check_by_kind(
    given: Mapping[str, Any], slides: bool, base: float, scaling: RopeScaling | None, path: Path
) -> None:
    """Refuses what transformers 4 and 5 read differently in a family whose fields are by the kind of layer."""
    inner = (given.get("rope_parameters") or {}).get(SLIDING) or {}
    if slides and inner.get("rope_theta") is None and given.get("rope_theta", base) != base:
        raise refusal(
            path,
            f"has rope_theta {given['rope_theta']} but not in rope_parameters: transformers 4 takes it for all layers, "
            f"transformers 5 not for those of type {SLIDING}",
            f"rope_parameters with rope_theta for {FULL} and {SLIDING}",
        )
    top = given.get("rope_scaling") or {}
    unread = {
        f"{_ORIGINAL} outside rope_parameters": scaling is not None and given.get(_ORIGINAL) is not None,
        "rope_scaling with type and no rope_type": scaling is not None and "type" in top and "rope_type" not in top,
        "truncate false": isinstance(scaling, YarnScaling) and not scaling.truncate,
    }
    if found := [what for what, is_there in unread.items() if is_there]:
        raise refusal(
            path, f"has {found[0]}, which transformers 5 does not read in this family", "rope_parameters alone"
        )


def _of_kind(place: str, content: Any, kind: str, by_kind: bool, path: Path) -> Mapping[str, Any]:
    """What a place of config.json says of the layers of one kind."""
    if not isinstance(content, dict):
        raise refusal(path, f"has {place} {content!r:.100}", "an object")
    nested = bool(content.keys() & {FULL, SLIDING})
    if nested != (by_kind and place == "rope_parameters"):
        raise refusal(path, f"has {place} {content!r:.200}", f"{'no' if nested else 'an'} object by the kind of layer")
    if nested:
        return content.get(kind) or {}
    return content if kind == FULL or not by_kind else {}


def _read_one(
    content: Mapping[str, Any], given: Mapping[str, Any], default: float, path: Path
) -> tuple[float, RopeScaling | None]:
    """(base, scaling) from the fields of one place and those at the top of config.json."""

    def one(field: str, *values: Any) -> Any:
        stated = [value for value in values if value is not None]
        if any(value != stated[0] for value in stated[1:]):
            raise refusal(path, f"has {field} {' and '.join(map(str, stated)):.200}", "one value")
        return stated[0] if stated else None

    def number(field: str, value: Any) -> float | None:
        if value is not None and type(value) not in (int, float):
            raise refusal(path, f"has {field} {value!r:.100}", "a number")
        return value

    kind = one("rope_type and type", content.get("rope_type"), content.get("type")) or "default"
    if kind not in _FIELDS:
        raise refusal(path, f"has rope_type {kind!r:.100}", ", ".join(_FIELDS))
    base = number("rope_theta", one("rope_theta", content.get("rope_theta"), given.get("rope_theta")))
    base = float(default if base is None else base)
    needed, optional = _FIELDS[kind]
    if missing := [field for field in needed if field not in content]:
        raise refusal(path, f"has rope_type {kind} without {missing[0]}", "a number")
    stated = {field for field, value in content.items() if value is not None}
    if unknown := stated - {*needed, *optional} - _OF_ANY_TYPE:
        expected = f"only {', '.join((*needed, *optional)) or 'rope_theta'}"
        raise refusal(path, f"has {min(unknown)} for rope_type {kind}", expected)
    if content.get("partial_rotary_factor") not in (None, 1):
        raise refusal(path, f"has partial_rotary_factor {content['partial_rotary_factor']!r:.100}", "1")
    values = {field: number(field, content.get(field)) for field in (*needed, *optional) if field != "truncate"}
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, LinearScaling(**values)
    context = given["max_position_embeddings"]
    original = number(_ORIGINAL, one(_ORIGINAL, content.get(_ORIGINAL), given.get(_ORIGINAL))) or context
    if kind == "llama3":
        return base, Llama3Scaling(**values, original_context=original)
    factor = context / original if values["factor"] is None else values["factor"]
    attention, scales = values["attention_factor"], (values["mscale"], values["mscale_all_dim"])
    if attention is None:
        attention = yarn_magnitude(factor)
        if all(scales):
            attention = yarn_magnitude(factor, scales[0]) / yarn_magnitude(factor, scales[1])
    return base, YarnScaling(
        factor=factor,
        original_context=original,
        attention_factor=attention,
        beta_fast=values["beta_fast"] or 32.0,
        beta_slow=values["beta_slow"] or 1.0,
        truncate=True if content.get("truncate") is None else content["truncate"],
    )


def write(config: ModelConfig, *, by_kind: bool) -> dict[str, Any]:
    """The fields in both layouts, and the context, on which transformers 4 makes YaRN depend."""
    scaling = None
    if config.rope_scaling is not None:
        scaling = {"rope_type": _TYPES[type(config.rope_scaling)], **dataclasses.asdict(config.rope_scaling)}
        if "original_context" in scaling:
            scaling[_ORIGINAL] = scaling.pop("original_context")
        if scaling.get("truncate"):
            del scaling["truncate"]  # the default, which older versions do not know
    plain = {"rope_type": "default", "rope_theta": config.rope_base}
    rope = plain | (scaling or {})
    return {
        "max_position_embeddings": _context(config),
        "rope_theta": config.rope_base,
        "rope_scaling": scaling,
        "rope_parameters": {FULL: rope, SLIDING: plain} if by_kind else rope,
    }


def _context(config: ModelConfig) -> int:
    """The context that YaRN reaches where it is a whole number of tokens, else the model's own.

    transformers 4.55 takes max_position_embeddings / original_max_position_embeddings for the factor, whatever `factor`
    says.
    """
    if not isinstance(config.rope_scaling, YarnScaling):
        return config.context
    reached = config.rope_scaling.factor * config.rope_scaling.original_context
    return round(reached) if math.isclose(reached, round(reached), rel_tol=1e-9) else config.context


def fits_version4(config: ModelConfig) -> bool:
    """Whether transformers 4.55 reads the factor of YaRN out of what `write` makes of it."""
    scaling = config.rope_scaling
    return not isinstance(scaling, YarnScaling) or math.isclose(
        _context(config) / scaling.original_context, scaling.factor, rel_tol=1e-9
    )
