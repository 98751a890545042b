"""How likely a model finds a continuation after a context: many pairs at once, each as if it were alone.

Invariant: only positions that continuations are read at reach the output layer, and pairs that differ in their last token
alone (the letters of a multiple choice) share one forward pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

LOGITS = 1 << 28  # of one forward pass: 1 GiB of fp32

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class _Input:
    """What goes into the model (all but the last token of a pair), and which pairs it answers."""

    ids: list[int]
    pairs: list[int]
    start: int
    """First position whose logits are read."""


@torch.no_grad()
def log_likelihoods(
    hf_model: Any, pairs: list[Pair], batch_size: int, after_batch: Callable[[int], None] = lambda done: None
) -> list[tuple[float, bool]]:
    """Of each (context, continuation), neither empty: its log probability in nats, and whether greedy decoding would write
    it. `after_batch` is told how many pairs a batch has answered."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    vocab_size = hf_model.get_output_embeddings().weight.shape[0]
    for batch in _batches(_inputs(pairs), batch_size, vocab_size):
        first, longest = min(one.start for one in batch), max(len(one.ids) for one in batch)
        # Padding comes after what is read, so causal models need no mask for it.
        input_ids = torch.tensor([one.ids + [0] * (longest - len(one.ids)) for one in batch], device=hf_model.device)
        kept = torch.arange(first, longest, device=hf_model.device)
        logits = hf_model(input_ids, logits_to_keep=kept, use_cache=False).logits
        for one, row in zip(batch, logits, strict=True):
            own = row[one.start - first : len(one.ids) - first].float()
            greedy, total = own.argmax(-1), own.logsumexp(-1)
            for pair in one.pairs:
                wanted = torch.tensor(pairs[pair][1], device=own.device)
                places = torch.arange(len(own) - len(wanted), len(own), device=own.device)
                log_probs = own[places, wanted] - total[places]
                found[pair] = float(log_probs.sum()), bool((greedy[places] == wanted).all())
        after_batch(sum(len(one.pairs) for one in batch))
    return found


def _inputs(pairs: list[Pair]) -> list[_Input]:
    """Longest first, so that what does not fit into memory shows at once."""
    same: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        same.setdefault((*context, *continuation[:-1]), []).append(number)
    inputs = [
        _Input(list(ids), numbers, min(len(pairs[number][0]) for number in numbers) - 1)
        for ids, numbers in same.items()
    ]
    return sorted(inputs, key=lambda one: len(one.ids), reverse=True)


def _batches(inputs: list[_Input], batch_size: int, vocab_size: int) -> Iterator[list[_Input]]:
    """Neighbours, as many as `batch_size` and the size of the logits allow."""
    batch: list[_Input] = []
    first = 0
    for one in inputs:
        reach = min(first, one.start) if batch else one.start
        size = (len(batch) + 1) * (len(batch[0].ids if batch else one.ids) - reach) * vocab_size
        if batch and (len(batch) == batch_size or size > LOGITS):
            yield batch
            batch, reach = [], one.start
        batch.append(one)
        first = reach
    if batch:
        yield batch
