"""The three types a record passes through, in numpy (no torch): Conversation -> TokenizedSample -> PackedRow."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100  # target of a position without loss

Message = dict[str, Any]


@dataclass(slots=True)
class Conversation:
    """One chat row after its checks: OpenAI messages with tool arguments as objects.

    `origin` is `file:line` and follows the row into rejects and reports; `source` is the name in `data.sources`.
    `template_kwargs`: what the row itself hands to the chat template; `unread`: keys of the row that nobody read.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    origin: str
    source: str
    meta: dict[str, Any] = field(default_factory=dict)
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)


@dataclass(slots=True)
class TokenizedSample:
    """One training sequence. `loss_mask[i] == 1` says that token i itself is learned (before the roll)."""

    input_ids: NDArray[np.int32]  # (length,)
    loss_mask: NDArray[np.uint8]  # (length,)
    origin: str


@dataclass(slots=True)
class PackedRow:
    """One row of a packed shard: conversations end to end, at most `seq_length` tokens, not padded.

    `loss_mask[j] == 1` says that the token AFTER j is learned (rolled left inside each sequence, last 0).
    """

    input_ids: NDArray[np.int32]  # (tokens,)
    loss_mask: NDArray[np.uint8]  # (tokens,)
    seq_start_id: NDArray[np.int32]  # (sequences,), first 0, strictly increasing
    source_id: NDArray[np.int16]  # (sequences,), index into metadata["sources"]
