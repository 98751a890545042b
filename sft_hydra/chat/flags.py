"""Flags that say whether a message, or each message of a row, is supervised: `message_weight`, `read_flag`.

Frameworks name this flag differently: OpenAI `weight`, LLaMA-Factory and ms-swift `loss`, axolotl `train` and
`training`, others `masked`. Invariant: a flag is obeyed, or RowError names it; it is never ignored.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sft_hydra.errors import RowError

SUPERVISED = (  # true: supervised
    *(
        "weight",
        "loss",
        "train",
        "training",
        "trainable",
        "train_on",
        "trained",
        "is_trained",
        "should_train",
        "do_train",
    ),
    *(
        "loss_mask",
        "loss_weight",
        "loss_scale",
        "step_loss_mask",
        "compute_loss",
        "calculate_loss",
        "supervised",
        "learn",
    ),
)
CONTEXT = ("masked", "is_masked", "ignore", "ignored", "ignore_loss", "no_loss", "skip_loss", "no_train", "not_trained")
REFUSED = {  # ambiguous or unsupported flags
    "mask": "the meaning is ambiguous; use `train` or `masked`",
    "train_detail": "supervising parts of a message is not supported",
    "training_detail": "supervising parts of a message is not supported",
    "loss_detail": "supervising parts of a message is not supported",
}
FLAGS = frozenset({*SUPERVISED, *CONTEXT, *REFUSED, "prefix"})
LOOKS = re.compile(r"(^|_)(train|loss|mask|supervis|learn|ignore|weight)", re.IGNORECASE)  # of a key that may be a flag
WORDS = {"true": True, "yes": True, "on": True, "y": True, "t": True} | dict.fromkeys(
    ("false", "no", "off", "n", "f"), False
)


def read_flag(value: Any) -> bool | None:
    """A flag as a boolean, number or word (`true`, `no`, `0`, `1.0`); None for anything else."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in WORDS:
            return WORDS[word]
        try:
            value = float(word)
        except ValueError:
            return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


@lru_cache(maxsize=10_000)
def looks_like_a_flag(key: str) -> bool:
    """Whether the name of an unknown key says that it may determine what is supervised (`train_on_turn`)."""
    return key not in FLAGS and LOOKS.search(key) is not None


def refuse_unknown_flag(key: str, value: Any) -> None:
    """RowError if an unknown key of an assistant message looks like a flag and has a flag's value."""
    if looks_like_a_flag(key) and read_flag(value) is not None:
        raise RowError(
            "training_flag",
            f"{key}={value!r} on a message looks like a training flag, but its meaning is not known; rename it to `train` or "
            "`masked`, or remove it",
        )


def is_supervised(key: str, value: Any) -> bool:
    """Whether a message with this flag is supervised. Raises RowError for an ambiguous name or value."""
    if key in REFUSED:
        raise RowError("training_flag", f"{key}={value!r} on a message: {REFUSED[key]}")
    found = read_flag(value)
    if found is None:
        reason = "weight" if key == "weight" else "training_flag"
        raise RowError(reason, f"a message's {key} must be 0 or 1 (true or false), not {value!r}")
    return found is (key not in CONTEXT)


def message_weight(message: Mapping[str, Any]) -> bool | None:
    """Whether an assistant message is supervised by its flags; None if it has no flags. Raises RowError."""
    found = {key: is_supervised(key, message[key]) for key in message if key in FLAGS and key != "prefix"}
    if len(set(found.values())) > 1:
        raise RowError("training_flag", f"flags of a message contradict each other: {', '.join(sorted(found))}")
    if "prefix" in message and read_flag(message["prefix"]) is not False:
        raise RowError("training_flag", "prefix=true marks an incomplete answer, which is not supported")
    return next(iter(found.values()), None)
