"""The bank of skills and mistakes that teachers are shown, and those of it that are nearest to a problem.

A bank (data.skills) is a JSONL file, one object a line:

    {"skill": "…"}                           what helps
    {"mistake": "…"}                         what goes wrong
    {"skill": "…", "question": "…"}          the same, learnt from this problem; its own teacher is not shown it
    {"skill": "…", "embedding": [0.1, …]}    the same, compared by this vector
    {"question": "…", "embedding": [0.2, …]} the vector of a training problem

Texts and questions are compared by the cosine of their TF-IDF vectors, or of the embeddings where the file has some:
then every skill and mistake needs one, every training problem a line, and all of them one length. The k-th nearest
skill and the k-th nearest mistake make the k-th pair, whose similarity is the mean of both.
Source: the official code of arXiv 2605.28791, which knows embeddings alone.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dasd_jax.data import tables
from dasd_jax.data.duplicates import normalise, twins
from dasd_jax.data.rows import as_text
from dasd_jax.errors import UserError

KINDS = ("skill", "mistake")
_AT_A_TIME = 1024  # questions, whose similarities to all texts are in memory


@dataclasses.dataclass(frozen=True)
class Item:
    """A text of a bank.

    Attributes:
        kind: one of KINDS.
        question: that it was learnt from, as `normalise` writes it; "" where it is not said.
        source: the same as `twins` writes it: with its numbers in another order it is the same problem; () without one.
        embedding: f64[E]; None where the bank has none.
    """

    kind: str
    text: str
    question: str
    source: tuple[str, ...]
    embedding: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Bank:
    """What a file holds.

    Attributes:
        path: of the file, as the config has it.
        of_questions: embeddings of problems by `normalise` of their questions; empty without embeddings.
    """

    path: str
    items: tuple[Item, ...]
    of_questions: Mapping[str, np.ndarray]

    def only(self, fits: Callable[[Item], bool]) -> "Bank":
        """The same with the items that fit."""
        return dataclasses.replace(self, items=tuple(filter(fits, self.items)))

    def require(self, count: int, which: str) -> None:
        """Refuses a bank of too few texts.

        Args:
            count: pairs that a teacher is shown.
            which: of the texts, for the message.

        Raises:
            UserError: fewer skills or mistakes than that.
        """
        numbers = [sum(item.kind == kind for item in self.items) for kind in KINDS]
        if min(numbers) < count:
            raise UserError(
                f"data.skills: {self.path}: {numbers[0]} skills and {numbers[1]} mistakes {which}: expected at least "
                f"{count} of each, as many as a teacher is shown"
            )


@dataclasses.dataclass(frozen=True)
class Pair:
    """What a teacher is shown of a bank, and how near it is to the problem."""

    skill: str
    mistake: str
    similarity: float


def read(path: str) -> Bank:
    """The bank in a file.

    Raises:
        UserError: none is named, it cannot be read, or a line is not as the head of this file says; starts with
            data.skills.
    """
    with _named():
        if not path:
            raise UserError("'': expected a bank of skills and mistakes for the method's teacher (docs/data.md)")
        lines = [_line(where, row) for where, row in tables.read_jsonl(path)]
        if not any(item.kind for item, _ in lines):
            raise UserError(f"{path}: it holds no skill and no mistake: expected one in each line")
        with_one = [(item, where) for item, where in lines if item.embedding is not None]
        for item, where in lines if with_one else ():
            size, expected = 0 if item.embedding is None else len(item.embedding), len(with_one[0][0].embedding)
            if size != expected:
                raise UserError(
                    f"{where}: an embedding of {size} numbers: expected {expected} in each line, as in {with_one[0][1]}"
                )
    of_questions = {item.question: item.embedding for item, _ in lines if not item.kind}
    return Bank(path, tuple(item for item, _ in lines if item.kind), of_questions)


def sha256(path: str) -> str:
    """That of the file, in hexadecimal.

    Raises:
        UserError: it cannot be read; starts with data.skills.
    """
    with _named(), tables.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest(bank: Bank, questions: Sequence[str], count: int) -> list[list[Pair]]:
    """For each question the `count` nearest pairs, the nearest first; of equally near texts the first of the file.

    Texts that were learnt from the question, in any order of its numbers, are left out, which may leave fewer pairs.

    Raises:
        UserError: a question without an embedding, where the bank has some; starts with data.skills.
    """
    asked = [normalise(question) for question in questions]
    embedded = bank.items[0].embedding is not None
    vectors = _by_embedding(bank, questions, asked) if embedded else _by_words(bank, questions)
    own = [twins(question) for question in questions]
    learnt_from: dict[tuple[str, ...], list[int]] = {}
    for place, item in enumerate(bank.items):
        learnt_from.setdefault(item.source, []).append(place)
    kinds = np.array([item.kind for item in bank.items])
    of_kind = [np.flatnonzero(kinds == kind) for kind in KINDS]
    found = []
    for start, similar in vectors:
        for source, row in zip(own[start:], similar, strict=False):
            ranked = []
            for places in of_kind:
                others = np.setdiff1d(places, learnt_from.get(source, []), assume_unique=True)
                ranked.append(others[np.argsort(-row[others], kind="stable")[:count]])
            found.append(
                [
                    Pair(bank.items[skill].text, bank.items[mistake].text, float(row[skill] + row[mistake]) / 2)
                    for skill, mistake in zip(*ranked, strict=False)
                ]
            )
    return found


def _by_words(bank: Bank, questions: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the first, cosines f64[questions, items]) of questions and texts, a part at a time."""
    # Imported here: it takes longer to import than to use, and most runs have no bank.
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Single digits and signs count: they tell 4 * 8 from 4 - 8.
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]")
    texts = vectorizer.fit_transform([item.text for item in bank.items])
    for start in range(0, len(questions), _AT_A_TIME):
        part = vectorizer.transform(questions[start : start + _AT_A_TIME])
        yield start, (part @ texts.T).toarray()


def _by_embedding(bank: Bank, questions: Sequence[str], asked: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
    """The same of embeddings."""
    for question, key in zip(questions, asked, strict=True):
        if key not in bank.of_questions:
            raise UserError(
                f"data.skills: {bank.path}: no embedding of the training problem {question!r:.80}: expected a line of "
                "question and embedding for each, since its skills and mistakes have embeddings"
            )
    texts = _unit(np.stack([item.embedding for item in bank.items]))
    for start in range(0, len(asked), _AT_A_TIME):
        part = np.stack([bank.of_questions[key] for key in asked[start : start + _AT_A_TIME]])
        yield start, _unit(part) @ texts.T


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _line(where: str, row: Mapping[str, Any]) -> tuple[Item, str]:
    """What a line holds, and where it stands; kind "" for that of a problem."""
    try:
        given = {name: text for name in (*KINDS, "question") if (text := as_text(row, name))}
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    kinds = [name for name in KINDS if name in given]
    embedding = row.get("embedding")
    if len(kinds) == 2 or not (kinds or ("question" in given and embedding is not None)):
        raise UserError(
            f"{where}: expected a text as skill or as mistake, and not both, or a question with its embedding"
        )
    kind = kinds[0] if kinds else ""
    vector = None if embedding is None else _vector(where, embedding)
    question = given.get("question", "")
    return Item(kind, given.get(kind, ""), normalise(question), twins(question) if question else (), vector), where


def _vector(where: str, value: Any) -> np.ndarray:
    numbers = isinstance(value, list) and all(type(number) in (int, float) for number in value)
    with np.errstate(over="ignore"), contextlib.suppress(OverflowError):  # a whole number that no float can hold
        vector = np.array(value if numbers else [], np.float64)
        if 0 < np.linalg.norm(vector) < np.inf:
            return vector
    raise UserError(f"{where}: embedding is {value!r:.50}: expected a list of finite numbers that are not all 0")


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"data.skills: {error}") from error
