"""Builds the content of the inspector page from a packed set: packed sequences, their conversations and check results.

Masks and document boundaries are read from the shards. Of a split too large for one page, an even sample is shown.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_hydra.chat.token_text import ROLES, TokenText
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.observe.inspector import Conversations, InspectorPage, Vocabulary, used_ids
from sft_hydra.records import PackedRow
from sft_hydra.runners.inspect.checks import CHECKS, suspicious
from sft_hydra.schema.config import SftConfig

MAX_TOKENS = 24_000_000  # a page of about 40 MB
MAX_REJECTS = 5_000
PROBE_ROWS = 64  # sequences used to estimate the conversations per sequence


def inspector_page(cfg: SftConfig, packed: PackedSet, tokenizer: ChatTokenizer) -> InspectorPage:
    """The page's content: about `inspect.conversations` of `inspect.split`, and rejected rows."""
    split = cfg.inspect.split
    numbers = chosen_rows(packed, split, cfg.inspect.conversations)
    rows = [packed.row(split, number) for number in numbers.tolist()]
    words = TokenText(tokenizer)
    talks = _conversations(rows, numbers, words, tokenizer.end_of_turn_ids)
    used = used_ids(talks.input_ids)
    text = [words.bytes_of(token) for token in used.tolist()]
    control = np.array([words.is_control(token) for token in used.tolist()], bool)
    rejects, rejects_total = _rejects(packed.folder / "rejects.jsonl")
    return InspectorPage(
        title=cfg.name or packed.folder.name,
        split=split,
        seq_length=cfg.seq_length,
        sources=packed.sources,
        roles=list(ROLES),
        checks=list(CHECKS),
        conversations=talks,
        vocabulary=Vocabulary(used, text, control),
        rows=numbers.astype(np.int32),
        rows_in_split=packed.num_rows(split),
        rejects=rejects,
        rejects_total=rejects_total,
        facts={
            "packed set": str(packed.folder),
            "tokenizer": str(tokenizer.folder),
            "tokenizer and template": tokenizer.fingerprint[:16],
        },
    )


def chosen_rows(packed: PackedSet, split: str, conversations: int) -> NDArray[np.int64]:
    """Indices of the packed sequences on the page, ascending: all, or an even sample with about `conversations`."""
    rows = packed.num_rows(split)
    probe = _spread(rows, PROBE_ROWS)
    per_row = np.mean([len(packed.row(split, row).seq_start_id) for row in probe.tolist()])
    fits = min(conversations / per_row, MAX_TOKENS / np.mean(packed.row_tokens(split)))
    return _spread(rows, max(1, round(fits)))


def supervised_tokens(row: PackedRow) -> NDArray[np.bool_]:
    """(tokens,): whether the token itself is supervised (the stored mask is shifted left by one)."""
    learned = np.zeros(len(row.loss_mask), dtype=bool)
    learned[1:] = row.loss_mask[:-1] == 1
    return learned


def _spread(total: int, count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def _conversations(
    rows: list[PackedRow], numbers: NDArray[np.int64], words: TokenText, end_of_turn: list[int]
) -> Conversations:
    ids = np.concatenate([row.input_ids for row in rows])
    learned = np.concatenate([supervised_tokens(row) for row in rows])
    first = np.cumsum([0, *(len(row.input_ids) for row in rows)])
    starts = [row.seq_start_id + start for row, start in zip(rows, first[:-1], strict=True)]
    offsets = np.concatenate([*starts, first[-1:]]).astype(np.int64)
    spaces = [token for token in used_ids(ids).tolist() if words.is_space(token)]
    flags, repetition = suspicious(ids, learned, offsets, end_of_turn, spaces)
    turn_start, turn_role = words.turns(ids)
    return Conversations(
        input_ids=ids,
        supervised=learned,
        offsets=offsets,
        row=np.repeat(numbers, [len(row.seq_start_id) for row in rows]).astype(np.int32),
        source=np.concatenate([row.source_id for row in rows]),
        flags=flags,
        repetition=repetition,
        turn_start=turn_start,
        turn_role=turn_role,
    )


def _rejects(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the first rejected rows, number of all)."""
    if not path.is_file():
        return [], 0
    kept: list[dict[str, Any]] = []
    total = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            total += 1
            if len(kept) < MAX_REJECTS:
                kept.append(json.loads(line))
    return kept, total
