"""Flags that say whether a message, or each message of a row, is supervised: `message_weight`, `read_flag`.

Every framework has its own name for the same thing: OpenAI `weight`, LLaMA-Factory and ms-swift `loss`, axolotl `train` and
`training`, others `masked`. Invariant: a flag is obeyed, or its row is a RowError that names it; it is never dropped.
"""

from collections.abc import Mapping
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
REFUSED = {  # what such a key may mean is not clear, or not possible here
    "mask": "it may mean either; `train` and `masked` are clear",
    "train_detail": "parts of a message cannot be supervised by themselves",
    "training_detail": "parts of a message cannot be supervised by themselves",
    "loss_detail": "parts of a message cannot be supervised by themselves",
}
FLAGS = frozenset({*SUPERVISED, *CONTEXT, *REFUSED, "prefix"})
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


def is_supervised(key: str, value: Any) -> bool:
    """What a flag of this name and value says of a message. Raises RowError if that is not clear."""
    if key in REFUSED:
        raise RowError("training_flag", f"{key}={value!r} on a message: {REFUSED[key]}")
    found = read_flag(value)
    if found is None:
        reason = "weight" if key == "weight" else "training_flag"
        raise RowError(reason, f"a message's {key} must be 0 or 1 (true or false), not {value!r}")
    return found is (key not in CONTEXT)


def message_weight(message: Mapping[str, Any]) -> bool | None:
    """Whether the flags of an assistant message want it supervised; None: it has none. Raises RowError."""
    found = {key: is_supervised(key, message[key]) for key in message if key in FLAGS and key != "prefix"}
    if len(set(found.values())) > 1:
        raise RowError("training_flag", f"flags of a message contradict each other: {', '.join(sorted(found))}")
    if "prefix" in message and read_flag(message["prefix"]) is not False:
        raise RowError("training_flag", "prefix=true: the message is only the beginning of an answer")
    return next(iter(found.values()), None)
