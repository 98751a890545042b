"""runner=inspect: what is trained, token by token, read from the packed shards themselves (masks are never computed here)."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.text import Text

from sft_hydra.config.schema import SftConfig
from sft_hydra.data.shards import PackedSet
from sft_hydra.data.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.errors import DataError
from sft_hydra.observe.console import Console
from sft_hydra.paths import RunPaths
from sft_hydra.records import PackedRow
from sft_hydra.runners.data_prep import prepared_set

TRAINED, CONTEXT = "bold green", "dim"


def run(cfg: SftConfig) -> None:
    """Prints `inspect.count` packed rows of `inspect.split`, trained tokens in green, and counts for the whole split."""
    assert cfg.run_dir is not None
    with Console(RunPaths(Path(cfg.run_dir)).log) as console:
        packed = prepared_set(cfg, console)
        tokenizer = load_tokenizer(cfg)
        split = cfg.inspect.split
        rows = packed.num_rows(split)
        if not rows:
            raise DataError(f"inspect.split={split}: the packed set {packed.folder} has no rows in it")
        for index in range(min(cfg.inspect.count, rows)):
            row = packed.row(split, index)
            console.say(f"\n{split} row {index}: {len(row.input_ids)} of {cfg.seq_length} tokens", style="bold")
            for number, text in enumerate(_conversations(row, packed, tokenizer)):
                console.say(f"-- conversation {number}", style="cyan")
                console.print(text)
        _totals(console, packed, split)


def trained_tokens(row: PackedRow) -> np.ndarray:
    """(tokens,) bool: the token itself is learned. The stored mask says it of the token after."""
    learned = np.zeros(len(row.loss_mask), dtype=bool)
    learned[1:] = row.loss_mask[:-1] == 1
    return learned


def _conversations(row: PackedRow, packed: PackedSet, tokenizer: ChatTokenizer) -> Iterator[Text]:
    learned = trained_tokens(row)
    bounds = [*row.seq_start_id.tolist(), len(row.input_ids)]
    for (start, end), source in zip(pairwise(bounds), row.source_id, strict=True):
        share = learned[start:end].mean()
        text = Text(f"   {packed.sources[source]}, {end - start} tokens, {share:.0%} trained\n", style="cyan")
        cuts = [start, *(start + 1 + np.flatnonzero(np.diff(learned[start:end]))).tolist(), end]
        for a, b in pairwise(cuts):
            text.append(tokenizer.decode(row.input_ids[a:b].tolist()), style=TRAINED if learned[a] else CONTEXT)
        yield text


def _totals(console: Console, packed: PackedSet, split: str) -> None:
    tokens = dict.fromkeys(packed.sources, 0)
    trained, sequences = dict(tokens), dict(tokens)
    for index in range(packed.num_rows(split)):
        row = packed.row(split, index)
        name = packed.sources[int(row.source_id[0])]
        tokens[name] += len(row.input_ids)
        trained[name] += int(row.loss_mask.sum())
        sequences[name] += len(row.seq_start_id)
    console.table(
        f"{split}: {packed.num_rows(split):,} packed rows in {packed.folder}",
        ["source", "conversations", "tokens", "trained", "share"],
        [
            (
                name,
                f"{sequences[name]:,}",
                f"{tokens[name]:,}",
                f"{trained[name]:,}",
                f"{trained[name] / max(1, tokens[name]):.1%}",
            )
            for name in packed.sources
        ],
    )
