"""Early stopping: training ends once a metric has not improved in so many measurements.

What it remembers is in `TrainState`, so a resumed run stops where a straight one does.
"""

import math

from sft_hydra.engine.loop import TrainState
from sft_hydra.schema.train import EarlyStoppingConfig

SCORES = ("eval/", "chatcore")  # metrics of which more is better; of all others, less


def more_is_better(metric: str) -> bool:
    """Whether a metric of metrics.jsonl is a score, not a loss."""
    return metric.startswith(SCORES)


def observe(state: TrainState, value: float, settings: EarlyStoppingConfig) -> None:
    """Record a measurement of `settings.metric`. NaN does not count as an improvement."""
    assert settings.metric is not None
    sign = 1 if more_is_better(settings.metric) else -1
    best = -math.inf if state.best_value is None else sign * state.best_value
    if sign * value > best + settings.min_delta:
        state.best_value, state.measurements_without_gain = value, 0
    else:
        state.measurements_without_gain += 1


def is_over(state: TrainState, settings: EarlyStoppingConfig) -> bool:
    """Whether training ends here."""
    return settings.metric is not None and state.measurements_without_gain >= settings.patience


def why_over(state: TrainState, settings: EarlyStoppingConfig, steps: int) -> str:
    """One line about it; `steps`: of the whole training."""
    best = "measured a number" if state.best_value is None else f"improved on {state.best_value:.4f}"
    return (
        f"stopped early after step {state.step} of {steps}: {settings.metric} has not {best} in "
        f"{state.measurements_without_gain} measurements"
    )
