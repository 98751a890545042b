"""Data types of preparation and training, in numpy (torch-free): Conversation -> TokenizedSample -> PackedRow."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100  # target of a position without loss

Message = dict[str, Any]


@dataclass(slots=True)
class Conversation:
    """One validated chat example: OpenAI messages with tool arguments as objects.

    `origin` is `file:line` and follows the row into rejects and reports; `source` is the name in `data.sources`.
    `template_kwargs`: variables of the row for the chat template; `unread`: keys of the row that were not used.
    `is_text`: raw text, one message of role `text`, which no chat template renders.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    origin: str
    source: str
    meta: dict[str, Any] = field(default_factory=dict)
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    is_text: bool = False


@dataclass(slots=True)
class TokenizedSample:
    """One tokenized example. `loss_mask[i] == 1`: token i itself is supervised (unshifted mask)."""

    input_ids: NDArray[np.int32]  # (length,)
    loss_mask: NDArray[np.uint8]  # (length,)
    origin: str


@dataclass(slots=True)
class PackedRow:
    """One packed sequence of a shard: concatenated examples, at most `seq_length` tokens, not padded.

    `loss_mask[j] == 1`: the token AFTER j is supervised (shifted left within each document, 0 at its last token).
    """

    input_ids: NDArray[np.int32]  # (tokens,)
    loss_mask: NDArray[np.uint8]  # (tokens,)
    seq_start_id: NDArray[np.int32]  # (sequences,), first 0, strictly increasing
    source_id: NDArray[np.int16]  # (sequences,), index into metadata["sources"]
