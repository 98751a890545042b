"""Validation loss per supervised token, in total and per source, always on the same packed sequences."""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

from sft_hydra.data.shards import PackedSet
from sft_hydra.engine.batch import Batch
from sft_hydra.engine.loop import source_sums
from sft_hydra.engine.microbatches import forward_only, load_batches, split_rows
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.parallel.collectives import sum_over_ranks
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.planning.recipe import Recipe
from sft_hydra.records import PackedRow

SPLIT = "valid"


@torch.no_grad()
def validate(
    model: DecoderModel,
    packed: PackedSet,
    recipe: Recipe,
    tokens: int | None = None,
    token_bytes: np.ndarray | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """`val/loss` and `val/loss/<source>` in nats per supervised token; empty if there is no validation split.

    `tokens`: use only as many packed sequences as hold so many tokens (eval.tokens); None: all.
    With `token_bytes` (vocab,), the bytes that each id stands for (0 for control tokens), also `val/bpb`: bits per byte
    of the trained text. `progress` is called with the packed sequences done and in total.
    """
    device, mesh = model.device, model.mesh
    bytes_of = None if token_bytes is None else torch.from_numpy(token_bytes.astype(np.int64)).to(device)
    sums: dict[int, float] = defaultdict(float)
    counts: dict[int, int] = defaultdict(int)
    text_nats, text_bytes = 0.0, 0
    training = model.training
    model.eval()
    rows = _ValidationRows(packed, tokens)
    step = recipe.rows_per_step
    for first in range(0, len(rows.numbers), step):
        numbers = range(first, min(first + step, len(rows.numbers)))
        batches = load_batches(
            rows, split_rows(numbers, recipe.train.micro_batch_size, mesh), model, recipe.micro_batch_tokens
        )
        losses = forward_only(model, batches)
        for source, (total, count) in source_sums(batches, losses, mesh).items():
            sums[source] += total
            counts[source] += count
        if bytes_of is not None:
            nats, size = sum_over_ranks(_text(batches, losses, bytes_of, mesh), mesh)
            text_nats, text_bytes = text_nats + nats, text_bytes + int(size)
        progress(min(first + step, len(rows.numbers)), len(rows.numbers))
    model.train(training)
    if not counts:
        return {}
    results = {"val/loss": sum(sums.values()) / sum(counts.values())}
    results |= {f"val/loss/{packed.sources[source]}": sums[source] / counts[source] for source in sorted(counts)}
    if text_bytes:
        results["val/bpb"] = text_nats / text_bytes / math.log(2)
    return results


class _ValidationRows:
    """Packed sequences of the validation split, indexed among those that are used."""

    def __init__(self, packed: PackedSet, tokens: int | None) -> None:
        self.packed = packed
        self.numbers = validation_rows(packed, tokens)

    def __getitem__(self, index: int) -> PackedRow:
        return self.packed.row(SPLIT, self.numbers[index])


def validation_rows(packed: PackedSet, tokens: int | None) -> list[int]:
    """Indices of the packed sequences that are used: all, or as many as hold `tokens` tokens, from a fixed shuffle."""
    lengths = packed.row_tokens(SPLIT)
    if tokens is None:
        return list(range(len(lengths)))
    order = np.random.default_rng(0).permutation(len(lengths))
    enough = int(np.searchsorted(lengths[order].cumsum(), tokens)) + 1
    return sorted(order[:enough].tolist())


def _text(batches: list[Batch], losses: list[torch.Tensor], bytes_of: torch.Tensor, mesh: Mesh) -> list[float]:
    """[nats, bytes] of the local supervised tokens that are text."""
    if mesh.pp.rank < mesh.pp.size - 1:
        return [0.0, 0.0]
    targets = torch.cat([batch.targets for batch in batches])
    sizes = bytes_of[targets.clamp_min(0)] * (targets >= 0)
    return [float(torch.cat(losses).double()[sizes > 0].sum()), float(sizes.sum())]
