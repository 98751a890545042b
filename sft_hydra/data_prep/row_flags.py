"""Flags of a row that determine which messages are supervised: `apply_row_flags`."""

from typing import Any

from sft_hydra.chat.flags import CONTEXT, SUPERVISED, is_supervised, looks_like_a_flag, read_flag
from sft_hydra.chat.roles import role_of
from sft_hydra.errors import RowError

LISTS = (  # one entry for each message
    *("train_mask", "weights", "message_weights", "turn_weights", "turn_mask", "message_mask", "loss_masks", "losses"),
    *("assistant_masks", "assistant_mask", "completion_mask"),
)
MASKED_LISTS = ("masks",)  # ambiguous: 1 may mean supervised or masked
RANGES = ("mask_ranges", "train_ranges")
KEYS = frozenset({*SUPERVISED, *CONTEXT, *LISTS, *MASKED_LISTS, *RANGES, "mask", "label"})


def apply_row_flags(row: dict[str, Any], messages: Any, read: set[str], labelled: bool) -> Any:
    """The messages with the row's flags set on each. Adds the keys of flags to `read`. `labelled`: the row is a prompt and a
    completion. RowError for flags that are ambiguous or do not fit the messages."""
    for key in KEYS.intersection(row):
        value = row[key]
        if value is None or value == []:
            read.add(key)
        elif isinstance(value, list):
            messages = _apply_list(key, value, messages, read)
        elif key == "mask":
            _check_masked_role(value, read)
        elif key == "label":
            _check_label(value, read, labelled)
        elif key not in LISTS:
            _check_scalar(key, value, read)
    if isinstance(messages, list):
        _check_unknown(row, len(messages))
    return messages


def _check_label(value: Any, read: set[str], labelled: bool) -> None:
    """The `label` of preference data (KTO); other values than booleans are those of classification."""
    if not isinstance(value, bool):
        return
    read.add("label")
    if not value and labelled:
        raise RowError("nothing_to_learn", "label=false: the completion is a negative example")
    if not value:
        raise RowError(
            "nothing_to_learn",
            "the row's label is false, which marks a negative example in preference data (KTO); remove the column if it means "
            "something else",
        )


def _check_unknown(row: dict[str, Any], count: int) -> None:
    """RowError for a list under a name of the kind of LISTS that has a flag for each message."""
    for key, value in row.items():
        is_flag = key not in KEYS and looks_like_a_flag(key) and type(value) is list and len(value) == count
        if is_flag and all(read_flag(flag) is not None for flag in value):
            raise RowError(
                "training_flag",
                f"the row's {key} has a flag for each message, but its meaning is not known; rename it to loss_mask or remove it",
            )


def _apply_list(key: str, flags: list[Any], messages: Any, read: set[str]) -> Any:
    if key in RANGES or key in ("mask", *MASKED_LISTS):
        raise RowError("training_flag", f"the row's {key} is not supported; use loss_mask with one entry per message")
    if key == "label":
        return messages
    if not isinstance(messages, list) or len(flags) != len(messages):
        count = len(messages) if isinstance(messages, list) else 0
        raise RowError("training_flag", f"the row's {key} has {len(flags)} entries for {count} messages")
    read.add(key)
    out = []
    for flag, message in zip(flags, messages, strict=True):
        if not isinstance(message, dict) or flag is None:
            out.append(message)
            continue
        known = key if key in CONTEXT else "loss_mask"
        out.append({**message, known: is_supervised(known, flag) is (known not in CONTEXT)})
    return out


def _check_scalar(key: str, value: Any, read: set[str]) -> None:
    """A flag of the whole row; a value that is not a flag (a measured loss, say) is another field."""
    found = read_flag(value)
    if found is None:
        if key == "weight" and isinstance(value, int | float):
            raise RowError(
                "weight", f"a row's weight must be 0 or 1, not {value!r}; set the weight of its source instead"
            )
        return
    read.add(key)
    if found is (key in CONTEXT):
        raise RowError("nothing_to_learn", f"the row's {key} is {value!r}")


def _check_masked_role(value: Any, read: set[str]) -> None:
    """NeMo's `mask` names the role that is context."""
    if not isinstance(value, str):
        raise RowError("training_flag", f"the row's mask={value!r} is ambiguous; use `train` or `masked` instead")
    read.add("mask")
    if role_of(value) not in ("user", "system", "tool"):
        raise RowError("training_flag", f"mask={value!r}: the row masks its assistant messages")
