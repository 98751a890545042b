"""Validation loss: per trained token, over all and per source, always on the same rows."""

import math
from collections import defaultdict

import numpy as np
import torch

from sft_hydra.config.schema import SftConfig
from sft_hydra.data.shards import PackedSet
from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.engine.loop import forward_loss, source_sums
from sft_hydra.engine.precision import autocast
from sft_hydra.models.decoder import DecoderModel

SPLIT = "valid"


@torch.no_grad()
def validate(
    model: DecoderModel, packed: PackedSet, cfg: SftConfig, token_bytes: np.ndarray | None = None
) -> dict[str, float]:
    """`val/loss` and `val/loss/<source>` in nats per trained token; empty if there is no validation split.

    With `token_bytes` (vocab,), the bytes that each id stands for (0 for control tokens), also `val/bpb`: bits per byte
    of the trained text.
    """
    device = model.head_weight.device
    bytes_of = None if token_bytes is None else torch.from_numpy(token_bytes.astype(np.int64)).to(device)
    sums: dict[int, float] = defaultdict(float)
    counts: dict[int, int] = defaultdict(int)
    text_nats, text_bytes = 0.0, 0
    training = model.training
    model.eval()
    rows = validation_rows(packed, cfg.eval.tokens)
    step = cfg.train.micro_batch_size
    for start in range(0, len(rows), step):
        batch = make_batch([packed.row(SPLIT, row) for row in rows[start : start + step]], device)
        with autocast(cfg, device):
            _, losses = forward_loss(model, batch)
        for source, (total, count) in source_sums([batch], [losses]).items():
            sums[source] += total
            counts[source] += count
        if bytes_of is not None:
            nats, size = _text(batch, losses, bytes_of)
            text_nats, text_bytes = text_nats + nats, text_bytes + size
    model.train(training)
    if not counts:
        return {}
    results = {"val/loss": sum(sums.values()) / sum(counts.values())}
    results |= {f"val/loss/{packed.sources[source]}": sums[source] / counts[source] for source in sorted(counts)}
    if text_bytes:
        results["val/bpb"] = text_nats / text_bytes / math.log(2)
    return results


def validation_rows(packed: PackedSet, tokens: int | None) -> list[int]:
    """Numbers of the rows that are used: all, or as many as hold `tokens` tokens, from a fixed shuffle."""
    lengths = packed.row_tokens(SPLIT)
    if tokens is None:
        return list(range(len(lengths)))
    order = np.random.default_rng(0).permutation(len(lengths))
    enough = int(np.searchsorted(lengths[order].cumsum(), tokens)) + 1
    return sorted(order[:enough].tolist())


def _text(batch: Batch, losses: torch.Tensor, bytes_of: torch.Tensor) -> tuple[float, int]:
    """Nats and bytes of the trained tokens that stand for text."""
    sizes = bytes_of[batch.targets.clamp_min(0)] * (batch.targets >= 0)
    return float(losses.double()[sizes > 0].sum()), int(sizes.sum())
