"""From what a config file sets and a command line overrides to the groups of one method, as plain dictionaries.

The method comes first, wherever it stands: its fields are the ones that may be overridden.
"""

import ast
from collections.abc import Mapping
from typing import Any

from dasd_jax import config
from dasd_jax.config import SHARED, Raw, declared, defaults, names, unknown
from dasd_jax.errors import UserError
from dasd_jax.fields import type_words
from dasd_jax.methods import METHODS

_MISSING = object()
# The last two: brackets in brackets without end.
_UNREADABLE = (ValueError, KeyError, SyntaxError, TypeError, RecursionError, MemoryError)


def resolve(raw: Raw, base: str, overrides: Mapping[str, str]) -> tuple[Raw, list[str]]:
    """The groups of the chosen method: what was set, then the overrides.

    Args:
        base: the method whose defaults `raw` was changed from.
        overrides: GROUP.FIELD → text, as on a command line.

    Returns:
        (groups; "objective.FIELD = VALUE" of all that was set and the chosen method does not have).

    Raises:
        UserError: a field that the method does not have, or a value of another type than the field's.
    """
    own = raw["objective"].get("method", base)
    method = overrides.get("objective.method", own)
    config.require_method(method)
    resolved, dropped = switch(raw, base, method, keep=method in (base, own))
    fields = declared(method)
    for name, text in overrides.items():
        group, _, field = name.partition(".")
        if name not in names(method):
            why = unknown(name, method)
            given = f"={text:.80}" if why.startswith("method ") else ""
            raise UserError(f"--config.{name}{given}: {why}")
        config.require_group(group, resolved.get(group))
        kind = fields[group][field].type
        try:
            resolved[group][field] = _read(text, kind)
        except _UNREADABLE as error:
            expected = f"{type_words(kind)}, as {fields[group][field].default!r}"
            raise UserError(f"--config.{name}: {text!r:.80} is not a value of its type: expected {expected}") from error
    return resolved, dropped


def _read(text: str, kind: Any) -> Any:
    """A value as a command line holds it; of several texts one alone needs no brackets."""
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind in (int, float):
        return kind(text)
    if not text.lstrip().startswith(("(", "[", "'", '"')):
        return (text,) if text else ()
    value = ast.literal_eval(text.strip())
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def switch(raw: Raw, base: str, method: str, keep: bool) -> tuple[Raw, list[str]]:
    """The same configuration for another method.

    Shared fields keep what was changed from the defaults of `base`, and otherwise have those of `method`; the method's
    own fields have its defaults.

    Args:
        base: the method whose defaults `raw` was changed from.
        keep: whether own fields of `method` keep what was changed under the same name.

    Returns:
        (groups; "objective.FIELD = VALUE" of all that was changed and has no place in them).
    """
    before, after = defaults(base), defaults(method)
    switched, dropped = {group: {} for group in raw}, []
    for group, values in raw.items():
        for name, value in values.items():
            default = before.get(group, {}).get(name, _MISSING)
            changed = not (isinstance(value, int | float | str | tuple) and value == default)
            kept = group != "objective" or name in SHARED or (keep and name in after[group])
            if changed and kept:
                switched[group][name] = value
            elif changed:
                dropped.append(f"{group}.{name} = {value!r:.80}")
            elif name in after[group]:
                switched[group][name] = after[group][name]
    own = {name: value for name, value in after["objective"].items() if name not in SHARED}
    switched["objective"] = {**own, **switched["objective"], "method": method}
    return switched, dropped


def base_of(raw: Raw) -> str:
    """The method from whose defaults a configuration was most likely made: one with its own fields."""
    own = raw["objective"].keys() - SHARED
    likely = sorted(METHODS, key=lambda name: name != raw["objective"].get("method"))  # its own before the others
    fitting = [name for name in likely if declared(name)["objective"].keys() - SHARED == own]
    return fitting[0] if fitting else config.default_method()
