"""runner=inspect: shows supervised tokens, with the masks stored in the packed shards."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from sft_hydra.chat.token_text import ROLES, TokenText
from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.errors import DataError
from sft_hydra.observe.console import Console
from sft_hydra.observe.inspector import write_inspector
from sft_hydra.paths import RunPaths
from sft_hydra.runners.data_prep import prepared_set
from sft_hydra.runners.inspect.page import inspector_page, supervised_tokens
from sft_hydra.schema.config import SftConfig

TRAINED, CONTEXT, LABEL = "bold green", "dim", "cyan"
NO_ROLE = "-"


def run(cfg: SftConfig) -> None:
    """Print `inspect.count` packed sequences of `inspect.split`, supervised tokens in green, with counts for them and for the
    split; with `inspect.html` also write the page."""
    assert cfg.run_dir is not None
    paths = RunPaths(Path(cfg.run_dir))
    with Console(paths.log) as console:
        packed = prepared_set(cfg, console)
        tokenizer = load_tokenizer(cfg)
        split = cfg.inspect.split
        if split not in ("train", "valid", "test") or not packed.num_rows(split):
            filled = [
                f"{name} ({packed.num_rows(name):,})" for name in ("train", "valid", "test") if packed.num_rows(name)
            ]
            raise DataError(
                f"inspect.split={split}: split is empty in {packed.folder}; choose one of {', '.join(filled)}"
            )
        _show_rows(console, cfg, packed, tokenizer)
        _totals(console, packed, split)
        if cfg.inspect.html:
            with console.work("writing the page"):
                page = inspector_page(cfg, packed, tokenizer)
                write_inspector(paths.inspector, page)
            shown, rows = len(page.rows), page.rows_in_split
            every = "every packed row" if shown == rows else f"{shown:,} of {rows:,} packed rows, evenly spread"
            console.say(f"page  {paths.inspector}: {len(page.conversations.row):,} conversations, {every}")


def _show_rows(console: Console, cfg: SftConfig, packed: PackedSet, tokenizer: ChatTokenizer) -> None:
    words = TokenText(tokenizer)
    tokens: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    split = cfg.inspect.split
    shown = min(cfg.inspect.count, packed.num_rows(split))
    for index in range(shown):
        row = packed.row(split, index)
        learned = supervised_tokens(row)
        console.say(f"\n{split} row {index}: {len(row.input_ids)} of {cfg.seq_length} tokens", style="bold")
        bounds = [*row.seq_start_id.tolist(), len(row.input_ids)]
        for (start, end), source in zip(pairwise(bounds), row.source_id.tolist(), strict=True):
            ids, mask = row.input_ids[start:end], learned[start:end]
            share = f"{packed.sources[source]}, {end - start} tokens, {mask.mean():.0%} trained"
            console.say(f"-- {share}", style=LABEL)
            for role, turn, flags in _turns(ids, mask, words):
                tokens[role] += len(turn)
                trained[role] += int(flags.sum())
                console.print(_coloured(role, turn, flags, tokenizer))
    if shown:
        roles = [role for role in (*ROLES, NO_ROLE) if tokens[role]]
        cells = [
            (role, f"{tokens[role]:,}", f"{trained[role]:,}", f"{trained[role] / tokens[role]:.1%}") for role in roles
        ]
        console.table(f"roles in these {shown} rows", ["role", "tokens", "trained", "share"], cells)


def _turns(
    ids: NDArray[np.int32], learned: NDArray[np.bool_], words: TokenText
) -> Iterator[tuple[str, NDArray[np.int32], NDArray[np.bool_]]]:
    """(role, ids, supervised) of each turn of one conversation; text before the first header has no role."""
    starts, roles = words.turns(ids)
    names = [ROLES[role] for role in roles.tolist()]
    cuts = [*starts.tolist(), len(ids)]
    if cuts[0] > 0:
        cuts, names = [0, *cuts], [NO_ROLE, *names]
    for name, (a, b) in zip(names, pairwise(cuts), strict=True):
        yield name, ids[a:b], learned[a:b]


def _coloured(role: str, ids: NDArray[np.int32], learned: NDArray[np.bool_], tokenizer: ChatTokenizer) -> Text:
    """The text of a turn after its role, with supervised tokens highlighted."""
    cuts = [0, *(1 + np.flatnonzero(np.diff(learned))).tolist(), len(ids)]
    body = Text()
    for a, b in pairwise(cuts):
        text = tokenizer.decode(ids[a:b].tolist()).replace("\x1b", "\u241b")  # no terminal escape sequences from data
        body.append(text, style=TRAINED if learned[a] else CONTEXT)
    margin = Text("\n" + " " * 9 + " | ", style=LABEL)
    return Text(f"{role:>9} | ", style=LABEL) + margin.join(body.split("\n"))


def _totals(console: Console, packed: PackedSet, split: str) -> None:
    """Print counts of the whole split by source."""
    source, tokens, trained = packed.row_source(split), packed.row_tokens(split), packed.row_trained(split)
    cells = []
    for index, name in enumerate(packed.sources):
        of_source = source == index
        total, learned = int(tokens[of_source].sum()), int(trained[of_source].sum())
        cells.append(
            (name, f"{int(of_source.sum()):,}", f"{total:,}", f"{learned:,}", f"{learned / max(1, total):.1%}")
        )
    title = f"{split}: {packed.num_rows(split):,} packed rows in {packed.folder}"
    console.table(title, ["source", "rows", "tokens", "trained", "share"], cells)
