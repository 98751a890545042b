"""Draws the pictures of docs/packing.md from a packed set that the real preparation makes: python docs/pictures/packing.py

Three conversations, the bundled tokenizer, one row. The SVG files beside this script are what it writes; a test
compares them.
"""

import json
import tempfile
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.config.compose import compose
from sft_hydra.config.resolve import resolve
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.records import IGNORE_INDEX, PackedRow

CONVERSATIONS = [
    [("user", "Spell tea."), ("assistant", "t e a")],
    [("user", "Upper case: go"), ("assistant", "GO")],
    [("user", "2 + 2?"), ("assistant", "4"), ("user", "And 3 + 3?"), ("assistant", "6")],
]
SEQ_LENGTH = 72
COLOURS = ("#26a69a", "#5c6bc0", "#ef8354")  # one for each conversation
SUPERVISED, PLAIN, INK, FAINT = "#c8e6c9", "#f3f4f6", "#1f2937", "#9ca3af"
LINE, CELL = 20, 11
STYLE = "font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12px"
COLUMNS = (
    ("j", 40),
    ("token", 130),
    ("position_ids", 110),
    ("mask of the token", 150),
    ("loss_mask (stored)", 150),
    ("label", 130),
)


def packed_row(folder: Path) -> tuple[PackedRow, list[str]]:
    """The row that the preparation makes of CONVERSATIONS, and the text of each of its tokens."""
    chats = folder / "chats.jsonl"
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in CONVERSATIONS]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    split = ["data.split.train=1", "data.split.valid=0", "data.split.test=0"]
    overrides = ["runner=data_prep", "data=jsonl", f"data.path={chats}", f"seq_length={SEQ_LENGTH}", *split]
    composed = compose(
        [*overrides, f"data.packed_dir={folder / 'packed'}", "data.num_workers=1", f"output_dir={folder}"]
    )
    assert composed is not None
    cfg = resolve(composed.config, composed.overrides)
    tokenizer = load_tokenizer(cfg)
    row = prepare(cfg).row("train", 0)
    assert len(row.seq_start_id) == len(CONVERSATIONS), "the conversations do not fit one row"
    return row, [tokenizer.decode([int(token)]) for token in row.input_ids]


def text(x: float, y: float, content: str, colour: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(content)}</text>"
    )


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"/>'


def page(width: int, height: int, label: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"'
    return "\n".join(
        [
            f'{head} aria-label="{escape(label)}" style="{STYLE}">',
            box(0, 0, width, height, "#ffffff"),
            *parts,
            "</svg>",
            "",
        ]
    )


def unrolled(row: PackedRow) -> np.ndarray:
    """The mask before it is shifted: 1 where the token itself is supervised."""
    mask = np.zeros_like(row.loss_mask)
    mask[1:] = row.loss_mask[:-1]
    return mask


def table(row: PackedRow, batch: Batch, texts: list[str]) -> str:
    """A line for each token of the packed row: text, position, mask, shifted mask and label."""
    bounds = batch.cu_seqlens.tolist()
    left, top, gap = 170, 50, 14
    width = left + sum(size for _, size in COLUMNS) + 10
    parts, x = [], left
    for name, size in COLUMNS:
        parts.append(text(x + 6, 30, name, weight="bold"))
        x += size
    y = top
    for number, (first, last) in enumerate(pairwise(bounds)):
        height = (last - first) * LINE
        parts.append(box(8, y, 6, height, COLOURS[number]))
        parts.append(text(20, y + 15, f"conversation {number + 1}"))
        parts.append(text(20, y + 33, f"cu_seqlens {first}:{last}", FAINT))
        for j in range(first, last):
            parts += line(j, left, y, row, batch, texts)
            y += LINE
        y += gap
    return page(width, y + 6, "A packed row, token by token", parts)


def line(j: int, left: float, y: float, row: PackedRow, batch: Batch, texts: list[str]) -> list[str]:
    """The cells of token `j`."""
    own, stored = int(unrolled(row)[j]), int(row.loss_mask[j])
    target = int(batch.targets[j])
    label = "-100" if target == IGNORE_INDEX else visible(texts[j + 1])
    cells = [str(j), visible(texts[j]), str(int(batch.position_ids[j])), str(own), str(stored), label]
    parts, x = [], left
    for index, ((_, size), cell) in enumerate(zip(COLUMNS, cells, strict=True)):
        marked = (index in (1, 3) and own) or (index in (4, 5) and stored)
        parts.append(box(x + 1, y + 1, size - 2, LINE - 2, SUPERVISED if marked else PLAIN))
        parts.append(text(x + 6, y + 15, cell, FAINT if cell in ("0", "-100") and index > 2 else INK))
        x += size
    return parts


def visible(token: str) -> str:
    return token.replace("\n", "\\n").replace(" ", "␣")


def attention(row: PackedRow, batch: Batch) -> str:
    """Which keys each query sees: a lower triangle for each conversation."""
    bounds, tokens, left, top = batch.cu_seqlens.tolist(), len(row.input_ids), 60, 50
    side = tokens * CELL
    parts = [text(left, 20, "key (token that is read)", weight="bold"), box(left, top, side, side, PLAIN)]
    parts.append(
        f'<text transform="translate(20 {top + 170}) rotate(-90)" fill="{INK}" font-weight="bold">query</text>'
    )
    for number, (first, last) in enumerate(pairwise(bounds)):
        for query in range(first, last):
            wide = (query - first + 1) * CELL
            parts.append(box(left + first * CELL, top + query * CELL, wide, CELL - 1, COLOURS[number]))
        parts.append(text(left + first * CELL, top - 8, str(first)))
        parts.append(text(left - 8, top + first * CELL + 10, str(first), anchor="end"))
    parts.append(text(left + side, top - 8, str(tokens)))
    parts.append(text(left, top + side + 24, f"cu_seqlens = {bounds}"))
    return page(left + side + 40, top + side + 40, "Attention of a packed row", parts)


def draw() -> dict[str, str]:
    """File name -> SVG."""
    with tempfile.TemporaryDirectory() as folder:
        row, texts = packed_row(Path(folder))
        batch = make_batch([row], "cpu")
        return {"packing_row.svg": table(row, batch, texts), "packing_attention.svg": attention(row, batch)}


if __name__ == "__main__":
    for name, svg in draw().items():
        Path(__file__).with_name(name).write_text(svg, encoding="utf-8")
