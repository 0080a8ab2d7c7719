"""Makes a bank of skills and mistakes of a run's answers: python -m dasd_jax.skills RUN --output=bank.jsonl

RUN is the --workdir of a run. Of every problem in its samples.jsonl a right response becomes a skill, a worked example,
and a wrong one a mistake, with a note that its answer is wrong. No model writes or judges anything:
docs/data.md says which responses are chosen and what a bank is for.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dasd_jax import cli, files, terminal
from dasd_jax.data.duplicates import normalise
from dasd_jax.errors import UserError
from dasd_jax.run import records
from dasd_jax.text import turns


def main(argv: list[str]) -> None:
    """The command."""
    flags = cli.Parser(description=__doc__, formatter_class=terminal.HelpFormatter, allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", help="folder of the run")
    flags.add_argument("--output", required=True, metavar="FILE.jsonl", help="the bank, a file that does not exist yet")
    flags.add_argument(
        "--answers", default="", metavar="FILE", help="of the run, as eval/start.jsonl: instead of samples.jsonl"
    )
    flags.add_argument(
        "--max_chars", default="2000", metavar="N", help="responses that are longer are left out (default: 2000)"
    )
    given = flags.parse_args(argv)
    run, output = Path(given.run).expanduser(), Path(given.output).expanduser()
    if not re.fullmatch(r"[1-9]\d{0,8}", given.max_chars):
        raise UserError(f"--max_chars: {given.max_chars}: expected a whole number from 1 to 999999999")
    if output.suffix != ".jsonl" or output.exists():  # a slip must not replace the files of a run
        raise UserError(f"--output: {output}: expected a file that ends in .jsonl and does not exist yet")
    if not output.parent.is_dir():
        raise UserError(f"--output: {output}: there is no folder {output.parent}: expected a file in one that exists")
    found = list(_answered(run, given.answers) if given.answers else _sampled(run))
    finished = [each for each in found if each.finished]
    judged = [each.response for each in finished if each.judged]
    bank = made(judged, int(given.max_chars))
    if not bank:
        raise UserError(
            f"RUN: {run}: {len(judged)} of {len(found)} responses are finished and judged, and none of those has at "
            f"most --max_chars = {given.max_chars} characters: raise the run's rollout.max_new_tokens, or --max_chars"
        )
    with files.replacing(output, "--output") as draft:
        draft.write_text("".join(map(files.json_line, bank)), encoding="utf-8")
    skills = sum("skill" in line for line in bank)
    made_of = f"{len(judged)} finished responses of {len(found)}"
    if unjudged := len(finished) - len(judged):
        made_of += f"; {unjudged} left out: the verifier came to no verdict"
    print(f"{output}: skills: {skills}, mistakes: {len(bank) - skills}, made of {made_of}")


Response = tuple[str, str, bool, str]  # question, text, whether it is right, what its reader is told if it is not


def made(responses: Iterable[Response], max_chars: int) -> list[dict[str, str]]:
    """The lines of the bank: of each problem at most one skill and one mistake, problems in the order of the responses.

    The skill is the shortest right response. The mistake is the shortest of the wrong responses with the commonest of
    the problem's wrong answers. Of equals the first is taken. Thinking is left out, as siblings are shown without it.
    """
    problems: dict[str, tuple[str, dict[str, None], dict[str, str], Counter]] = {}
    for question, text, right, told in responses:
        said = text.rpartition("</think>")[2].strip().encode(errors="replace").decode()
        _, rights, wrongs, tellings = problems.setdefault(normalise(question), (question, {}, {}, Counter()))
        if not said or len(said) > max_chars:
            continue
        if right:
            rights[said] = None
        else:
            wrongs.setdefault(said, told)
            tellings[told] += 1
    bank = []
    for question, rights, wrongs, tellings in problems.values():
        asked = "\n\n".join(turn["content"] for turn in turns.read(question))
        if rights:
            skill = f"A problem and a right response to it.\n\n{asked}\n\n{min(rights, key=len)}"
            bank.append({"skill": skill, "question": question})
        if wrongs:
            [(common, _)] = tellings.most_common(1)
            response = min((said for said, told in wrongs.items() if told == common), key=len)
            mistake = f"A problem and a response to it {common}.\n\n{asked}\n\n{response}"
            bank.append({"mistake": mistake, "question": question})
    return bank


class _Found(NamedTuple):
    """A response in a file of the run."""

    response: Response
    finished: bool
    judged: bool


def _sampled(run: Path) -> Iterator[_Found]:
    """The responses of samples.jsonl."""
    records.check(run)
    with files.reading(run / "samples.jsonl", "RUN"):
        for problem in records.samples(run):
            for each in problem["rollouts"]:
                yield _found(problem["question"], each)


def _answered(run: Path, name: str) -> Iterator[_Found]:
    """The answers of an evaluation."""
    path = run / name
    if not path.is_file():
        raise UserError(f"--answers: {path}: no such file: expected heldout/STEP.jsonl or eval/NAME.jsonl of the run")
    with files.reading(path, "--answers"):
        for problem in records.answers(path):
            names = ("text", "reward", "extracted", "error", "finished")
            for values in zip(*(problem[name] for name in names), strict=True):
                yield _found(problem["question"], dict(zip(names, values, strict=True)))


def _found(question: str, each: dict) -> _Found:
    text, extracted = each["text"], each["extracted"]
    if not all(isinstance(part, str) for part in (question, text, extracted or "")):
        raise TypeError(f"{text!r:.50} or what belongs to it is no text")
    said = f"whose answer {extracted} is wrong" if extracted else "that is wrong"
    said = "in which no answer was found" if each["error"] == "parse" else said
    response = question, text, records.is_right(each), said
    return _Found(response, bool(each["finished"]), records.is_judged(each))


if __name__ == "__main__":
    cli.run(main)
