"""What a method may declare."""

import pytest

from dasd_jax.data.contexts import PER_ROLLOUT
from dasd_jax.methods import METHODS
from dasd_jax.objective.contract import View


def test_a_view_has_a_rate_with_ema_alone_and_an_interval_with_snapshot_alone():
    for fits in ({}, {"weights": "frozen"}, {"weights": "ema", "rate": 0.1}, {"weights": "snapshot", "every": 5}):
        View(**fits)
    for refused in (
        {"weights": "teacher"},
        {"count": 0},
        {"rate": 0.1},
        {"rate": 1.5},
        {"every": 3},
        {"every": -1},
        {"weights": "ema"},
        {"weights": "ema", "rate": 1.0},
        {"weights": "ema", "rate": 0.1, "every": 2},
        {"weights": "snapshot", "rate": 0.1, "every": 2},
        {"weights": "snapshot"},
    ):
        with pytest.raises(ValueError, match="expected"):
            View(**refused)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_and_its_divergence_read_are_views_that_it_declares(name):
    method = METHODS[name]
    hp = method.fields()
    views, divergence = method.views(hp), method.divergence(hp)
    assert set(method.scored(hp)) <= set(views)
    assert divergence is None or all(views[view].count == 1 for view in divergence.views)
    assert not method.probe or views[method.probe].context not in PER_ROLLOUT
