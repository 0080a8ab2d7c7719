"""Problems with verifiable answers, loaded from source specs that a sweep or a command line can override.

    gym:chain_sum?min_terms=2&max_terms=2&size=4000&seed=0      a reasoning-gym task and its config fields
    jsonl:/path/file.jsonl?question=problem&answer=final_answer one object per line; the query names columns, without it
                                                                a published layout is recognised (data/layouts.py)
    parquet:/path/file.parquet?question=problem                 the same for the rows of a Parquet file
    tfds:/path/to/prepared/dataset?split=train                  a TFDS data set in ArrayRecord format, no TensorFlow

Paths may be in a bucket (gs://…).

`privileged=answer|solution|hint|sibling` in any query selects the default teacher context of its problems.
`verifier=NAME` says likewise how their responses are judged (data/verifiers.py). Every error in a spec or a file is a
`UserError` that starts with the config field that names the spec.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from dasd_jax.data import buckets, layouts, tables, verifiers
from dasd_jax.data.duplicates import normalise
from dasd_jax.data.published import how_to_prepare
from dasd_jax.data.rows import Drop
from dasd_jax.errors import UserError
from dasd_jax.text.prompts import PRIVILEGED

# These tasks iterate over sets while they generate, so (spec, index) gives a different problem in every process: a
# resumed run, a second host and the verifier's workers would not see the same problems.
_NONDETERMINISTIC_TASKS = frozenset(
    ["isomorphic_strings", "knight_swap", "list_functions", "polynomial_multiplication", "ransom_note", "word_ladder"]
)

_MAX_GYM_PROBLEMS = 100_000  # per reasoning-gym source; more would delay the first step by minutes
_PROBLEM_TIMEOUT_S = 5.0  # per reasoning-gym problem; the slowest tasks take a few milliseconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem with its reference answer; (source, index) identifies it in every process."""

    question: str
    answer: str
    solution: str = ""  # worked solution, "" if the source has none
    hint: str = ""
    response: str = ""  # what supervised fine-tuning imitates; "" for the solution and the answer
    other_responses: tuple[str, ...] = ()  # those of its duplicates, which supervised fine-tuning imitates too
    source: str  # the spec it came from
    index: int  # its position in that source, before duplicates are removed
    scorer: str  # its verifier, a name of data/verifiers.py
    privileged: str = ""  # default teacher context if the spec names one; "" means data.privileged
    columns: str = ""  # JSON of its whole row, for a reward function of the user's own; "" for other scorers

    def as_dict(self) -> dict[str, Any]:
        """What a reward function of the user's own is told: the columns of the row, and over them our fields."""
        own = ("question", "answer", "solution", "hint", "response", "source")
        return (json.loads(self.columns) if self.columns else {}) | {name: getattr(self, name) for name in own}

    def told(self) -> list[dict[str, Any]]:
        """`as_dict` where a verdict may depend on all of it; empty where the verifier is one of ours."""
        return [self.as_dict()] if verifiers.is_own(self.scorer) else []

    def by_response(self) -> list["Problem"]:
        """A problem for each of its responses, in their order; itself alone if it has one or none."""
        rest = [dataclasses.replace(self, response=other, other_responses=()) for other in self.other_responses]
        return [dataclasses.replace(self, other_responses=()), *rest]


class _Spec(NamedTuple):
    """The parts of a spec."""

    scheme: str
    target: str
    query: dict[str, str]  # without the two that follow
    privileged: str  # "" where it names none
    verifier: str  # likewise


def load_source(spec: str, field: str = "data.sources", verifier: str = "") -> list[Problem]:
    """Every problem of one source, in source order.

    Args:
        verifier: that of its problems, unless the spec names one; "": the task's own, or `math`.

    Raises:
        UserError: the spec or its data are invalid; starts with `field`, the config field that names the spec, or with
            data.verifier.
    """
    with _prefix_errors(field, spec):
        scheme, target, query, privileged, named = _parsed(spec)
    default = "task" if scheme == "gym" else "math"
    with _prefix_errors(field, spec) if named else _prefix_errors("data.verifier", verifier):
        verifiers.check(named or verifier or default, of_task=scheme == "gym")
    with _prefix_errors(field, spec):
        problems = list(_LOADERS[scheme](spec, target, query, named or verifier or default))
        if not problems:
            raise UserError("it holds no problems, expected at least one")
    return [dataclasses.replace(problem, privileged=privileged) for problem in problems]


def privileged_of(spec: str, field: str = "data.sources") -> str:
    """`Problem.privileged` of every problem of a source, without loading it.

    Raises:
        UserError: the spec is invalid; starts with `field`.
    """
    with _prefix_errors(field, spec):
        return _parsed(spec).privileged


def verifier_of(spec: str, field: str = "data.sources") -> str:
    """The verifier that a source names itself, "" where it names none; as `privileged_of`."""
    with _prefix_errors(field, spec):
        return _parsed(spec).verifier


def own_files(specs: Mapping[str, Sequence[str]], verifier: str) -> dict[str, Path]:
    """The files of the user's own reward functions, under their names as the config has them; loads no source.

    Args:
        specs: those of each config field that has some.
        verifier: data.verifier.

    Raises:
        UserError: a spec is invalid, or names a file or module that is not there; starts with the field.
    """
    named = [(field, spec) for field, of_field in specs.items() for spec in of_field]
    found = {}
    for field, value in [*named, ("data.verifier", verifier)]:
        with _prefix_errors(field, value):
            name = value if field == "data.verifier" else _parsed(value).verifier
            if verifiers.is_own(name):
                found[name.rpartition(":")[0]] = verifiers.file_of(name)
    return found


@contextlib.contextmanager
def _prefix_errors(field: str, spec: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {spec!r}: {error}") from error


def _parsed(spec: str) -> _Spec:
    scheme, colon, rest = spec.partition(":")
    if not colon or scheme not in _LOADERS:
        raise UserError(f"unknown scheme, expected one of {', '.join(f'{name}:' for name in _LOADERS)}")
    target, query = _split_query(rest)
    privileged = query.pop("privileged", "")
    if privileged and privileged not in PRIVILEGED:
        raise UserError(f"privileged={privileged}: expected one of {', '.join(PRIVILEGED)}")
    return _Spec(scheme, target, query, privileged, query.pop("verifier", ""))


def absent(specs: Iterable[str], field: str = "data.sources") -> list[str]:
    """Those of the specs whose local file or folder does not exist; buckets are not asked.

    Raises:
        UserError: a spec is invalid; starts with `field`.
    """
    found = []
    for spec in specs:
        with _prefix_errors(field, spec):
            scheme, target, *_ = _parsed(spec)
        path = epath.Path(target).expanduser()
        if scheme != "gym" and not buckets.is_bucket(path) and not os.path.exists(path):
            found.append(spec)
    return found


def load_problems(specs: Sequence[str], verifier: str = "") -> tuple[list[Problem], dict[str, int]]:
    """Concatenates the sources; of problems with the same question (`normalise`) only the first is kept.

    The responses of the others, as far as they differ, become its `other_responses`.

    Args:
        verifier: as for `load_source`.

    Returns:
      The problems, and the counts `read`, `duplicates` and `kept` = read - duplicates.
    """
    if not specs:
        raise UserError(f"data.sources: {specs!r}: no sources, expected at least one")
    read = list(itertools.chain.from_iterable(load_source(spec, verifier=verifier) for spec in specs))
    groups: dict[str, list[Problem]] = {}
    for problem in read:
        groups.setdefault(normalise(problem.question), []).append(problem)
    kept = []
    for first, *others in groups.values():
        responses = dict.fromkeys(other.response for other in others if other.response not in ("", first.response))
        kept.append(dataclasses.replace(first, other_responses=tuple(responses)) if responses else first)
    return kept, {"read": len(read), "duplicates": len(read) - len(kept), "kept": len(kept)}


def load_benchmarks(specs: Sequence[str], verifier: str) -> list[Problem]:
    """Concatenates the benchmarks, each in the order of `split_heldout` and otherwise as published.

    The first problems of a benchmark are therefore a mixture of its parts, whatever the order of the file.
    """
    return [problem for spec in specs for problem in by_hash(load_source(spec, "data.benchmarks", verifier))]


def labels(specs: Iterable[str]) -> dict[str, str]:
    """Spec → a name for tables: the task, or the last part of its path; the whole spec if two would collide."""
    short = {spec: _label(spec) for spec in specs}
    uses = Counter(short.values())
    return {spec: name if uses[name] == 1 else spec for spec, name in short.items()}


def _label(spec: str) -> str:
    path = spec.partition(":")[2].partition("?")[0].rstrip("/")
    # Folders that TFDS creates end in a version, which is not part of the name.
    path = re.sub(r"/\d+\.\d+\.\d+$", "", path)
    return re.sub(r"\.(jsonl|parquet)$", "", path.rpartition("/")[2])


def by_hash(problems: Sequence[Problem]) -> list[Problem]:
    """The problems in an order that depends on their questions alone."""

    def digest(problem: Problem) -> bytes:
        # Not `normalise`, which may learn more notation: which problems are held out has to stay.
        return hashlib.sha256(" ".join(problem.question.casefold().split()).encode()).digest()

    return sorted(problems, key=digest)


@functools.lru_cache(maxsize=32)
def gym_dataset(spec: str) -> Any:
    """The reasoning-gym data set of a `gym:` spec, with the same entries in every process."""
    from reasoning_gym.factory import DATASETS, create_dataset

    task, query = _split_query(spec.removeprefix("gym:"))
    for name in ("privileged", "verifier"):
        query.pop(name, None)
    if task not in DATASETS:
        raise UserError(f"no reasoning-gym task {task!r}, nearest are {_nearest(task, DATASETS)}")
    if task in _NONDETERMINISTIC_TASKS:
        raise UserError(f"task {task!r} is not deterministic across processes, expected a deterministic task")
    known = [field.name for field in dataclasses.fields(DATASETS[task][1])]
    for name in query:
        if name not in known:
            raise UserError(f"task {task!r} has no field {name!r}, nearest are {_nearest(name, known)}")
    fields = {"seed": 0} | {name: _literal(value) for name, value in query.items()}
    for name, least, most in (("seed", 0, 2**63 - 1), ("size", 1, _MAX_GYM_PROBLEMS)):
        value = fields.get(name, least)
        if type(value) is not int or not least <= value <= most:
            raise UserError(f"{name} is {value!r:.100}, expected an integer of {least} to {most}")
    try:
        return create_dataset(task, **fields)
    except Exception as error:
        # The 100 tasks validate differently: AssertionError, ValueError, TypeError and more.
        raise UserError(f"task {task!r} rejects its fields: {error}") from error


def _gym_problems(spec: str, _task: str, _query: Mapping[str, str], verifier: str) -> Iterator[Problem]:
    dataset = gym_dataset(spec)
    for index in range(len(dataset)):
        try:
            with _time_limit(_PROBLEM_TIMEOUT_S):
                entry = dataset[index]
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the task failed to generate problem {index}: {reason}") from error
        if not entry["answer"]:
            raise UserError(f"problem {index} has no reference answer, expected a task whose problems all have one")
        yield Problem(
            question=entry["question"],
            answer=str(entry["answer"]),
            solution=entry["metadata"].get("answer_cot", ""),
            source=spec,
            index=index,
            scorer=verifier,
        )


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the body after `seconds`; no limit outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(*_):
        raise TimeoutError(f"it takes longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _jsonl_problems(spec: str, path: str, query: Mapping[str, str], verifier: str) -> Iterator[Problem]:
    return _mapped_problems(spec, tables.read_jsonl(path), query, verifier)


def _parquet_problems(spec: str, path: str, query: Mapping[str, str], verifier: str) -> Iterator[Problem]:
    return _mapped_problems(spec, tables.read_parquet(path), query, verifier)


def _tfds_problems(spec: str, path: str, query: Mapping[str, str], verifier: str) -> Iterator[Problem]:
    import tensorflow_datasets as tfds

    columns = dict(query)
    split = columns.pop("split", "train")
    folder = epath.Path(path).expanduser()
    with buckets.client_errors(folder):
        found = folder.is_dir()
    if not found:
        raise UserError(f"no such directory {path!r}; {how_to_prepare(path)}")

    def rows(folder: epath.PathLike) -> list[tables.Row]:
        try:
            # The files are opened only when the first row is read.
            source = tfds.builder_from_directory(folder).as_data_source(split)
            return [(f"{path}:{split}[{i}]", source[i]) for i in range(len(source))]
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"TFDS cannot read split {split!r} of {path!r}: {reason}") from error

    if not buckets.is_bucket(folder):
        return _mapped_problems(spec, rows(folder), columns, verifier)
    # All rows are read anyway: copying reads each file once, with the bucket client that the other sources use.
    with buckets.local_copy(folder) as copy:
        return _mapped_problems(spec, rows(copy), columns, verifier)


_LOADERS = {
    "gym": _gym_problems,
    "jsonl": _jsonl_problems,
    "parquet": _parquet_problems,
    "tfds": _tfds_problems,
}


def _mapped_problems(
    spec: str, rows: Iterable[tables.Row], columns: Mapping[str, str], verifier: str
) -> Iterator[Problem]:
    """One problem per row, read as `prepare` reads it; what that would drop is an error here.

    The layout is that of the columns named in the spec, else the one that the first row's columns tell.
    """
    layout = layouts.of_columns(columns) if columns else None
    for index, (where, row) in enumerate(rows):
        layout = layout or layouts.recognise(row) or layouts.of_columns({})
        found = layouts.read(layout, where, row)
        if isinstance(found, Drop):
            raise UserError(
                f"{where}: {found.reason}: expected a problem with one verifiable answer in each row; "
                "python -m dasd_jax.prepare makes a data set without the others"
            )
        kept = json.dumps(dict(row), default=_as_json) if verifiers.is_own(verifier) else ""
        yield Problem(**vars(found), source=spec, index=index, scorer=verifier, columns=kept)


def _as_json(value: Any) -> Any:
    """A value of a Parquet file or a TFDS data set that JSON has no form for: arrays as lists, others as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _split_query(rest: str) -> tuple[str, dict[str, str]]:
    # Not urllib's parse_qs: it turns "+" into a space, and operators=("+","-") is a value in several tasks.
    target, _, query = rest.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise UserError(f"{name + equals + value!r} in the query, expected name=value")
    return target, {name: value for name, _, value in pairs}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: nested too deeply
        return text


def _nearest(name: str, known: Iterable[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.0))
