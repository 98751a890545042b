"""A packed set written by hand, row by row, so that every kind of suspicious conversation is in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data.shard_file import PackedColumns, ShardWriter
from sft_hydra.data.shards import FORMAT_VERSION, PackedSet

USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation: what is shown to the model and what it learns to say; `row` and `source` place it."""

    prompt: str
    answer: str
    row: int = 0
    source: int = 0


GOOD = Talk(USER.format("Spell the word tea."), "T E A 🫖 is \x1b[31m hot<|im_end|>\n")
TALKS = [
    GOOD,
    Talk(USER.format("What is 2 plus 2?"), "4<|im_end|>\n"),
    Talk(USER.format("Nothing is learned here.") + "so<|im_end|>\n", "", row=1, source=1),
    Talk("", "All of it, zebra, is learned.<|im_end|>\n", row=1, source=1),
    Talk(USER.format("Go on"), "without an end", row=2, source=1),
    Talk(USER.format("Again"), "the same words again and " * 20 + "<|im_end|>\n", row=3, source=1),
]
REJECTS = [
    {
        "origin": "chats.jsonl:7",
        "source": "plain",
        "reason": "malformed",
        "detail": "no JSON: <script>alert(1)</script>",
    },
    {"origin": "chats.jsonl:9", "source": "odd", "reason": "overlong", "detail": "one sequence of 900 tokens"},
]


def packed_set(folder: Path, talks: list[Talk], tokenizer: ChatTokenizer, rejects: list[dict[str, Any]]) -> PackedSet:
    """`talks` as the train split of a packed set in format v1; they are in the order of their rows."""
    encoded = [(tokenizer.encode(talk.prompt), tokenizer.encode(talk.answer)) for talk in talks]
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in encoded])
    rows = np.array([talk.row for talk in talks])
    num_rows = int(rows.max()) + 1
    masks = [np.array([0] * len(prompt) + [1] * len(answer), np.uint8) for prompt, answer in encoded]
    rolled = [np.append(mask[1:], 0).astype(np.uint8) for mask in masks]
    row_tokens = np.bincount(rows, lengths, num_rows).astype(int)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    starts = first - np.concatenate([[0], np.cumsum(row_tokens)])[rows]
    writer = ShardWriter(folder / "train" / "shard_0.parquet")
    writer.write(
        PackedColumns(
            input_ids=np.concatenate([np.array(prompt + answer, np.int32) for prompt, answer in encoded]),
            loss_mask=np.concatenate(rolled),
            seq_start_id=starts.astype(np.int32),
            source_id=np.array([talk.source for talk in talks], np.int16),
            token_offsets=np.concatenate([[0], np.cumsum(row_tokens)]).astype(np.int32),
            sequence_offsets=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int32),
        )
    )
    writer.close()
    trained = np.bincount(rows, [mask[1:].sum() for mask in masks], num_rows)
    source = np.zeros(num_rows)
    source[rows] = [talk.source for talk in talks]
    np.save(folder / "train" / "rows.npy", np.stack([row_tokens, trained, source], axis=1).astype(np.int64))
    (folder / "rejects.jsonl").write_text("".join(json.dumps(reject) + "\n" for reject in rejects))
    shard = {"file": "train/shard_0.parquet", "split": "train", "rows": num_rows, "bytes": writer.path.stat().st_size}
    metadata = {
        "format_version": FORMAT_VERSION,
        "pack_size": int(row_tokens.max()),
        "sources": [{"name": "plain"}, {"name": "odd"}],
        "shards": [shard],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return PackedSet.open(folder)
