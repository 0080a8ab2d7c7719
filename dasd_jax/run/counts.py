"""How many problems a command takes, and what it leaves out and why: the lines that commands begin with."""

from collections.abc import Iterator, Mapping

from dasd_jax.config import Config
from dasd_jax.data.pipeline import PromptSet


def listed(counts: Mapping[str, int]) -> str:
    """Those that are not 0."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def lines(
    config: Config, evaluated: PromptSet, training: PromptSet | None = None, read: Mapping[str, int] | None = None
) -> Iterator[str]:
    """The problems in one line, and a warning for each benchmark of which some are left out.

        problems: 24 read, 4 in a benchmark; training: 20; to evaluate: 18 of 30, 12 left out: student prompt longer …

    Args:
        read: of `setup.open_prompts`.
    """
    parts = [listed(read or {}), training and f"training: {_taken(training)}", f"to evaluate: {_taken(evaluated)}"]
    yield "problems: " + "; ".join(filter(None, parts))
    for spec in config.data.benchmarks:
        whole, taken = evaluated.given[spec], sum(problem.source == spec for problem in evaluated.problems)
        if taken < whole:
            yield (
                f"warning: data.benchmarks: {spec!r}: {whole - taken:,} of its {whole:,} problems are left out: its "
                "figures are not those of the whole benchmark"
            )


def _taken(prompts: PromptSet) -> str:
    taken, whole = f"{len(prompts):,}", prompts.given.total()
    of_whole = f"{taken} of {whole:,}" if len(prompts) < whole else taken
    return ", ".join(filter(None, [of_whole, listed(prompts.counts)]))
