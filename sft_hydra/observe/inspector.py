"""inspect.html: a packed set on one page, searchable and readable token by token. Takes plain arrays, independent of shards.

Token ids are stored as ranks in the page's vocabulary (frequent ids are small numbers), in blocks of complete conversations
that the page decodes on demand, so that it opens quickly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_hydra.observe import html_pages

BLOCK_TOKENS = 1 << 17  # a block decodes in a few milliseconds


@dataclass(slots=True)
class Conversations:
    """C concatenated conversations in the order of their packed sequences, T tokens in total."""

    input_ids: NDArray[np.int32]  # (T,)
    supervised: NDArray[np.bool_]  # (T,), whether the token itself is supervised
    offsets: NDArray[np.int64]  # (C + 1,)
    row: NDArray[np.int32]  # (C,), index of the packed sequence in its split
    source: NDArray[np.int16]  # (C,)
    flags: NDArray[np.uint8]  # (C,), bit i: result of `InspectorPage.checks[i]`
    repetition: NDArray[np.uint8]  # (C,), percent of the supervised tokens that repeat an earlier run of tokens
    turn_start: NDArray[np.int64]  # (R,), token index, increasing
    turn_role: NDArray[np.uint8]  # (R,), index into `InspectorPage.roles`


@dataclass(slots=True)
class Vocabulary:
    """Token ids that occur, with the bytes of each and whether it is a control token."""

    ids: NDArray[np.int32]  # (V,), most frequent first
    text: list[bytes]
    control: NDArray[np.bool_]  # (V,)


@dataclass(slots=True)
class InspectorPage:
    """Contents of the page."""

    title: str
    split: str
    seq_length: int
    sources: list[str]
    roles: list[str]
    checks: list[tuple[str, str]]  # name and explanation, the most serious last
    conversations: Conversations
    vocabulary: Vocabulary
    rows: NDArray[np.int32]  # (sequences on the page,), their indices in the split
    rows_in_split: int
    rejects: list[dict[str, Any]]  # origin, source, reason, detail
    rejects_total: int
    facts: dict[str, str]  # shown unchanged


def used_ids(input_ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Ids that occur (V,), most frequent first."""
    counts = np.bincount(input_ids)
    used = np.flatnonzero(counts)
    return used[np.argsort(-counts[used], kind="stable")].astype(np.int32)


def write_inspector(path: Path, page: InspectorPage) -> None:
    """Write the page to `path`."""
    conversations, words = page.conversations, page.vocabulary
    facts = {
        "title": page.title,
        "split": page.split,
        "seqLength": page.seq_length,
        "sources": page.sources,
        "roles": page.roles,
        "checks": [{"name": name, "text": text} for name, text in page.checks],
        "rowsInSplit": page.rows_in_split,
        "rejectsTotal": page.rejects_total,
        "facts": page.facts,
        "planes": _planes(len(words.ids)),
    }
    first, blocks = _blocks(conversations, words)
    arrays: dict[str, NDArray[Any]] = {
        "length": np.diff(conversations.offsets).astype(np.uint32),
        "trained": _per_conversation(conversations.supervised, conversations.offsets).astype(np.uint32),
        "row": conversations.row.astype(np.uint32),
        "source": conversations.source.astype(np.uint16),
        "flags": conversations.flags,
        "repetition": conversations.repetition,
        "turnStart": conversations.turn_start.astype(np.uint32),
        "turnRole": conversations.turn_role,
        "rows": page.rows.astype(np.uint32),
        "vocabId": words.ids.astype(np.uint32),
        "vocabLength": np.array([len(text) for text in words.text], np.uint16),
        "vocabControl": words.control.astype(np.uint8),
        "blockFirst": first,
    }
    text = html_pages.render(
        "inspector.html.jinja",
        title=page.title,
        facts=facts,
        rejects=page.rejects,
        arrays={name: (array.dtype.name, html_pages.pack(array)) for name, array in arrays.items()},
        vocabulary=html_pages.pack(b"".join(words.text)),
        blocks=blocks,
    )
    html_pages.write(path, text)


def _planes(size: int) -> int:
    """Bytes needed for a rank in a vocabulary of `size`."""
    return 1 if size <= 1 << 8 else 2 if size <= 1 << 16 else 3


def _per_conversation(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of `values` over each conversation."""
    return np.diff(np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[offsets])


def _blocks(conversations: Conversations, words: Vocabulary) -> tuple[NDArray[np.uint32], list[str]]:
    """(first conversation of each block, and the end; encoded blocks). A block has byte planes of ranks, then a mask bit per
    token."""
    rank = np.zeros(int(words.ids.max(initial=0)) + 1, np.uint32)
    rank[words.ids] = np.arange(len(words.ids))
    number = conversations.offsets[:-1] // BLOCK_TOKENS
    first = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(number)).astype(np.uint32)
    blocks = []
    for a, b in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        cut = slice(int(conversations.offsets[a]), int(conversations.offsets[b]))
        ranks = rank[conversations.input_ids[cut]]
        planes = [(ranks >> (8 * plane)).astype(np.uint8) for plane in range(_planes(len(words.ids)))]
        blocks.append(html_pages.pack(np.concatenate([*planes, np.packbits(conversations.supervised[cut])])))
    return first, blocks
