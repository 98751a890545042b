"""Which parameters full fine-tuning trains (`train.freeze`, `train.trainable`): by their names alone, so that a plan knows it too."""

from collections.abc import Sequence
from itertools import accumulate

from sft_hydra.errors import ConfigError
from sft_hydra.planning.lora_targets import fits


def choose_trained(names: Sequence[str], freeze: Sequence[str], trainable: Sequence[str] | None) -> set[str]:
    """Those of these parameters that are trained: the ones that `trainable` names (None or empty: all) without those that
    `freeze` names. ConfigError for patterns that match none of them, and if nothing is left to train."""
    patterns_of = {"train.freeze": freeze, "train.trainable": trainable or ()}
    found = {key: [_named(names, pattern) for pattern in patterns] for key, patterns in patterns_of.items()}
    if problems := [
        f"{key}: {pattern!r} matches no parameter of this model; it has: {', '.join(_kinds(names))}"
        for key, patterns in patterns_of.items()
        for pattern, matches in zip(patterns, found[key], strict=True)
        if not matches
    ]:
        raise ConfigError(*problems)
    chosen = set(names) if not trainable else {name for matches in found["train.trainable"] for name in matches}
    chosen = chosen.difference(*found["train.freeze"])
    if not chosen:
        raise ConfigError(
            f"train.freeze={list(freeze)}"
            + (f" with train.trainable={list(trainable)}" if trainable else "")
            + " leaves no parameter to train"
        )
    return chosen


def _named(names: Sequence[str], pattern: str) -> set[str]:
    """Parameters whose own name, or that of a module which they are in, fits the pattern."""
    return {name for name in names if any(fits(part, pattern) for part in accumulate(name.split("."), _joined))}


def _joined(module: str, child: str) -> str:
    return f"{module}.{child}"


def _kinds(names: Sequence[str]) -> list[str]:
    """Last parts of the names of the modules that have parameters."""
    return sorted({name.split(".")[-2] for name in names if "." in name})
