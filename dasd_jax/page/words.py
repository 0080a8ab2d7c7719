"""The words that a run's teacher suppresses most, and those that it favours most."""

from collections.abc import Iterable

from dasd_jax.health.polarity import polarity
from dasd_jax.page.pack import clipped, rounded

_WORDS = 15  # of each polarity
_LONGEST_WORD = 80  # characters


def words(rollouts: Iterable[dict]) -> list[dict]:
    """Suppressed ones first, each with the counts, the log-odds and z of `health.polarity`; none without gaps."""
    found = polarity(rollouts)
    suppressed = [word for word in found if word.log_odds > 0][:_WORDS]
    favoured = [word for word in found if word.log_odds < 0][-_WORDS:]
    return [
        {
            "word": clipped(each.word, _LONGEST_WORD),
            "suppressed": each.suppressed,
            "favoured": each.favoured,
            "log_odds": rounded(each.log_odds, 3),
            "z": rounded(each.z, 3),
        }
        for each in (*suppressed, *favoured)
    ]
