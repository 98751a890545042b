"""inspect.html: a packed set on one page, to search and to read token by token. Gets plain arrays, knows no shards.

Token ids travel as ranks in the page's own vocabulary (frequent ones are small numbers), in blocks of whole
conversations that the page unpacks when it needs them, so that it opens at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_hydra.observe import html_pages

BLOCK_TOKENS = 1 << 17  # a block unpacks in a few milliseconds


@dataclass(slots=True)
class Conversations:
    """Conversations end to end in the order of their packed rows: C of them, T tokens in all."""

    input_ids: NDArray[np.int32]  # (T,)
    learned: NDArray[np.bool_]  # (T,), the token itself is learned
    offsets: NDArray[np.int64]  # (C + 1,)
    row: NDArray[np.int32]  # (C,), number of the packed row in its split
    source: NDArray[np.int16]  # (C,)
    flags: NDArray[np.uint8]  # (C,), bit i: what `InspectorPage.checks[i]` says
    repetition: NDArray[np.uint8]  # (C,), percent of the learned tokens that repeat an earlier run of tokens
    turn_start: NDArray[np.int64]  # (R,), in tokens, rising
    turn_role: NDArray[np.uint8]  # (R,), index into `InspectorPage.roles`


@dataclass(slots=True)
class Vocabulary:
    """Of each id that occurs, in the order of `ids`: its bytes, and whether it is a control token."""

    ids: NDArray[np.int32]  # (V,), most frequent first
    text: list[bytes]
    control: NDArray[np.bool_]  # (V,)


@dataclass(slots=True)
class InspectorPage:
    title: str
    split: str
    seq_length: int
    sources: list[str]
    roles: list[str]
    checks: list[tuple[str, str]]  # name and explanation, the gravest last
    conversations: Conversations
    vocabulary: Vocabulary
    rows: NDArray[np.int32]  # (rows on the page,), their numbers in the split
    rows_in_split: int
    rejects: list[dict[str, Any]]  # origin, source, reason, detail
    rejects_total: int
    facts: dict[str, str]  # shown as they are


def used_ids(input_ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """Ids that occur, the most frequent first."""
    counts = np.bincount(input_ids)
    used = np.flatnonzero(counts)
    return used[np.argsort(-counts[used], kind="stable")].astype(np.int32)


def write_inspector(path: Path, page: InspectorPage) -> None:
    """Write the page."""
    talks, words = page.conversations, page.vocabulary
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
    first, blocks = _blocks(talks, words)
    arrays: dict[str, NDArray[Any]] = {
        "length": np.diff(talks.offsets).astype(np.uint32),
        "trained": _per_conversation(talks.learned, talks.offsets).astype(np.uint32),
        "row": talks.row.astype(np.uint32),
        "source": talks.source.astype(np.uint16),
        "flags": talks.flags,
        "repetition": talks.repetition,
        "turnStart": talks.turn_start.astype(np.uint32),
        "turnRole": talks.turn_role,
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
    """Bytes of one rank."""
    return 1 if size <= 1 << 8 else 2 if size <= 1 << 16 else 3


def _per_conversation(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of `values` over each conversation."""
    return np.diff(np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[offsets])


def _blocks(talks: Conversations, words: Vocabulary) -> tuple[NDArray[np.uint32], list[str]]:
    """First conversation of each block (and the end); each block: planes of ranks, then one bit a token for the mask."""
    rank = np.zeros(int(words.ids.max(initial=0)) + 1, np.uint32)
    rank[words.ids] = np.arange(len(words.ids))
    number = talks.offsets[:-1] // BLOCK_TOKENS
    first = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(number)).astype(np.uint32)
    blocks = []
    for a, b in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        cut = slice(int(talks.offsets[a]), int(talks.offsets[b]))
        ranks = rank[talks.input_ids[cut]]
        planes = [(ranks >> (8 * plane)).astype(np.uint8) for plane in range(_planes(len(words.ids)))]
        blocks.append(html_pages.pack(np.concatenate([*planes, np.packbits(talks.learned[cut])])))
    return first, blocks
