"""How many packed sequences of each source one epoch has (`plan_epoch`), and the training rows in order (`train_rows`).

`epochs`: how often a source is seen in one epoch of the blend (default 1; fractions and repetition both work).
`weight`: share of the training tokens; then an epoch has about as many tokens as all weighted sources together, so
sources below their natural share are cut and those above it repeat. Either every source has a weight or none has.
Invariant: a blend is an index over packed sequences; changing it does not repack.
"""

import numpy as np
from numpy.typing import NDArray

from sft_hydra.data.dataset import SourceShare, TrainRows
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.sources import Source, sources_of
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import DataConfig


def plan_epoch(packed: PackedSet, data: DataConfig) -> list[SourceShare]:
    """Packed sequences of each source in one epoch, in the order of `packed.sources`. ConfigError if weights and epochs
    contradict each other (`check_weights`) or the blend is empty."""
    of_source, tokens = packed.row_source("train"), packed.row_tokens("train")
    available = np.bincount(of_source, minlength=len(packed.sources))
    totals = np.bincount(of_source, tokens, minlength=len(packed.sources))
    weights, epochs = _weights(packed, data)
    mean = totals / np.maximum(available, 1)
    if weights is None:
        rows = np.rint(epochs * available)
    else:
        wanted = weights / weights.sum() * totals[weights > 0].sum()
        rows = np.rint(wanted / np.maximum(mean, 1))
        rows[(weights > 0) & (available > 0)] = np.maximum(rows[(weights > 0) & (available > 0)], 1)
    rows = np.where(available > 0, rows, 0).astype(np.int64)
    share = rows * mean
    if not rows.sum():
        raise ConfigError(
            "data: this blend has 0 training rows; raise data.sources.<name>.epochs or data.sources.<name>.weight"
        )
    return [
        SourceShare(name, int(rows[i]), int(available[i]), float(share[i] / share.sum()))
        for i, name in enumerate(packed.sources)
    ]


def train_rows(packed: PackedSet, cfg: SftConfig) -> TrainRows:
    """The packed sequences of this run's blend, in training order. ConfigError as in `plan_epoch`."""
    return TrainRows(packed, plan_epoch(packed, cfg.data), cfg.seed, cfg.data.order)


def check_weights(sources: list[Source]) -> None:
    """ConfigError unless either all sources have a weight or none has, no source has both weight and epochs, and none of
    them is negative."""
    configs = {source.name: source.config for source in sources if source.only is None}
    weights = {name: config.weight for name, config in configs.items() if config.weight is not None}
    epochs = {name: config.epochs for name, config in configs.items() if config.epochs is not None}
    problems = [
        f"data: {what} of source {name} is {value}; it must be 0 or more"
        for what, values in (("weight", weights), ("epochs", epochs))
        for name, value in values.items()
        if value < 0
    ]
    if weights and len(weights) < len(configs):
        problems.append(
            f"data: {', '.join(weights)} have a weight, {', '.join(sorted(set(configs) - set(weights)))} have none; "
            "set weight for every source, or for none of them and use epochs"
        )
    if weights and not any(weights.values()):
        problems.append("data: the weight of every source is 0; set at least one above 0")
    problems += [f"data: {name} has both weight and epochs; set only one of them" for name in weights if name in epochs]
    if problems:
        raise ConfigError(*problems)


def _weights(packed: PackedSet, data: DataConfig) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """(weights or None, epochs) by source."""
    try:
        sources = sources_of(data)
    except ConfigError:  # the packed set is used without its sources
        return None, np.ones(len(packed.sources))
    check_weights(sources)
    configs = {source.name: source.config for source in sources if source.only is None}
    if packed.metadata.get("foreign") and not set(packed.sources) <= set(configs):
        return None, np.ones(len(packed.sources))  # equal names by coincidence: not its sources
    mine = [configs.get(name) for name in packed.sources]
    epochs = np.array([1.0 if config is None or config.epochs is None else config.epochs for config in mine])
    weights = np.array([0.0 if config is None or config.weight is None else config.weight for config in mine])
    return (weights if weights.any() else None), epochs
