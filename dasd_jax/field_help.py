"""The fields, explained: --help-config on a terminal, and docs/fields.md.

python -m dasd_jax.field_help > docs/fields.md
"""

import dataclasses
import difflib
import re
import sys

import rich.box
import rich.console
import rich.markup
import rich.table

from dasd_jax.config import GROUPS, Raw, declared
from dasd_jax.field_names import ELSEWHERE, nearest
from dasd_jax.methods import METHODS

_HEAD = """# Every field of a configuration

`--config.GROUP.FIELD=VALUE` sets one on the command line, `config.GROUP.FIELD = …` in a config file. `make fields`
writes this page from the declarations in [config.py](../dasd_jax/config.py), [mesh.py](../dasd_jax/mesh.py) and
[methods](../dasd_jax/methods); `--help-config` shows the same on a terminal, with the values of a given configuration.

Beside its own range every field is held to its type, a number to 32 bits and never to NaN or infinity, a text to
printable characters. No text may hold a secret ([reliability.md](reliability.md)).
"""


def show(word: str, raw: Raw) -> None:
    """Prints the fields of a group, or those whose name or meaning holds a word; all of them for "".

    Args:
        raw: the values to show.
    """
    console = rich.console.Console(highlight=False)
    groups = declared(raw["objective"]["method"])
    found = matching(word, groups)
    for group, fields in found.items():
        table = rich.table.Table("field", "value", "range", "meaning", box=rich.box.SIMPLE_HEAD, pad_edge=False)
        table.columns[0].no_wrap = True
        for column, share in zip(table.columns[1:], (2, 3, 5), strict=True):
            column.ratio, column.overflow = share, "fold"
        table.expand = True
        for name, each in fields.items():
            value = _shown(raw.get(group, {}).get(name, each.default))
            cells = (name, value, each.metadata["range"].expected, each.metadata["meaning"])
            table.add_row(*map(rich.markup.escape, cells))
        console.print(f"[bold]{group}[/bold]   --config.{group}.FIELD=VALUE\n{_sentence(group)}.")
        console.print(table)
    if not found:
        every = {f"{group}.{name}": each for group, fields in groups.items() for name, each in fields.items()}
        near = difflib.get_close_matches(word, [*GROUPS, *every], 3, 0.4)
        first = [name for name in [nearest(word, list(every))] if name]
        likely = ", ".join(dict.fromkeys([*first, *near])) or ", ".join(GROUPS)
        console.print(f"no field's name or meaning holds {word!r}; near it: {likely}", markup=False)


def matching(word: str, groups: dict[str, dict[str, dataclasses.Field]]) -> dict[str, dict[str, dataclasses.Field]]:
    """Of each group the fields that a word asks for: a group, a field, a part of a meaning, another trainer's name."""
    word = word.lower().removeprefix("--").removeprefix("config.")
    if not word or word in groups:
        return {group: fields for group, fields in groups.items() if word in ("", group)}
    group, _, name = word.partition(".")
    if name in groups.get(group, {}):
        return {group: {name: groups[group][name]}}
    begins = re.compile(rf"(?<![a-z]){re.escape(word)}")
    found = {}
    for group, fields in groups.items():
        for name, each in fields.items():
            full = f"{group}.{name}"
            if begins.search(f"{full} {each.metadata['meaning'].lower()}") or ELSEWHERE.get(word) == full:
                found.setdefault(group, {})[name] = each
    return found


def page() -> str:
    """docs/fields.md."""
    parts = [_HEAD]
    for group, kind in GROUPS.items():
        fields = {each.name: each for each in dataclasses.fields(kind)}
        parts.append(f"## {group}\n\n{_sentence(group)}.\n\n{_rows(group, fields)}")
        if group == "objective":
            parts += [_of_method(method) for method in METHODS]
    return "\n".join(parts)


def _of_method(method: str) -> str:
    """The part of one method: its own fields, and the shared defaults that it changes."""
    own = {each.name: each for each in dataclasses.fields(METHODS[method].fields)}
    changed = [f"`{name}` is `{value!r}`" for name, value in METHODS[method].shared.items()]
    text = f"### objective, with method = {method}\n\n"
    text += f"Other defaults: {', '.join(changed)}.\n\n" if changed else ""
    return text + (_rows("objective", own) if own else "No fields of its own.\n")


def _rows(group: str, fields: dict[str, dataclasses.Field]) -> str:
    lines = ["| field | default | range | meaning |", "|---|---|---|---|"]
    for name, each in fields.items():
        words = each.metadata["range"].expected, each.metadata["meaning"]
        cells = [f"`{group}.{name}`", f"`{each.default!r}`", *(text.replace("|", r"\|") for text in words)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _sentence(group: str) -> str:
    """What a group is about."""
    return GROUPS[group].__doc__.splitlines()[0].rstrip(".")


def _shown(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "()"
    return str(value).lower() if isinstance(value, bool) else f"{value}" if value != "" else "''"


if __name__ == "__main__":
    sys.stdout.write(page())
