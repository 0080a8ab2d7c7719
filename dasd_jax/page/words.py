"""The words that a run's teacher suppresses most, and those that it favours most."""

from pathlib import Path

from dasd_jax import files
from dasd_jax.health.polarity import polarity
from dasd_jax.page.pack import clipped, rounded
from dasd_jax.run import records

_WORDS = 15  # of each polarity


def words(run: Path) -> list[dict]:
    """Suppressed ones first, each with the counts, the log-odds and z of `health.polarity`; none without gaps."""
    rollouts = (rollout for problem in records.samples(run) for rollout in problem["rollouts"])
    with files.reading(run / "samples.jsonl", "RUN"):
        found = polarity(rollouts)
    suppressed = [word for word in found if word.log_odds > 0][:_WORDS]
    favoured = [word for word in found if word.log_odds < 0][-_WORDS:]
    return [
        {
            "word": clipped(each.word, 80),
            "suppressed": each.suppressed,
            "favoured": each.favoured,
            "log_odds": rounded(each.log_odds, 3),
            "z": rounded(each.z, 3),
        }
        for each in (*suppressed, *favoured)
    ]
