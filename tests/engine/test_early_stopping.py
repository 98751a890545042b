"""When training ends because a metric no longer improves."""

import math

import pytest

from sft_hydra.engine.early_stopping import is_over, observe
from sft_hydra.engine.loop import TrainState
from sft_hydra.schema.train import EarlyStoppingConfig


def last_measurement(values, **settings):
    """How many of the values are measured until it is over; None: all are, and it is not."""
    state, wanted = TrainState(), EarlyStoppingConfig(**settings)
    for number, value in enumerate(values, start=1):
        observe(state, value, wanted)
        if is_over(state, wanted):
            return number
    return None


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([3, 2, 1, 1.5, 1.2, 1.1], {"metric": "val/loss", "patience": 3}, 6),
        ([3, 2, 2.5, 1, 2, 3], {"metric": "val/loss", "patience": 2}, 6),
        ([3, 2, 1.99, 1.98], {"metric": "val/loss", "patience": 2, "min_delta": 0.1}, 4),
        ([0.1, 0.2, 0.15, 0.2], {"metric": "eval/chatcore", "patience": 2}, 4),
        ([0.1, 0.2, 0.3], {"metric": "eval/chatcore", "patience": 1}, None),
        ([2, math.nan], {"metric": "val/loss", "patience": 1}, 2),
    ],
)
def test_patience_counts_measurements_without_gain(values, settings, expected):
    assert last_measurement(values, **settings) == expected


def test_without_a_metric_training_is_never_over():
    assert not is_over(TrainState(measurements_without_gain=9), EarlyStoppingConfig())
