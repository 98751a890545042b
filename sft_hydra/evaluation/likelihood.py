"""Log likelihood of continuations after contexts, batched; each result is independent of the batch.

Invariant: only positions of continuations reach the lm_head, and pairs that differ only in their last token (the letters of a
multiple choice) share one forward pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sft_hydra.evaluation.sample import BATCH_TOKENS

LOGITS = 1 << 28  # maximum number of logits in one forward pass: 1 GiB of fp32

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Input:
    """Model input (all but the last token of a pair), and the pairs that share it."""

    ids: list[int]
    pairs: list[int]
    start: int
    """First position whose logits are read."""


@torch.no_grad()
def log_likelihoods(
    hf_model: Any,
    pairs: list[Pair],
    batch_size: int,
    after_batch: Callable[[int], None] = lambda done: None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[tuple[float, bool]]:
    """For each (context, continuation) of token ids, neither empty: (log probability in nats, whether greedy decoding gives
    the continuation). A batch has at most `batch_size` inputs and `batch_tokens` tokens with padding. `after_batch` is called
    with the number of pairs of each batch."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    vocab_size = hf_model.get_output_embeddings().weight.shape[0]
    for batch in _batches(inputs_of(pairs), batch_size, batch_tokens, vocab_size):
        first, longest = min(one.start for one in batch), max(len(one.ids) for one in batch)
        # Padding is on the right, so causal models need no mask for it.
        input_ids = torch.tensor([one.ids + [0] * (longest - len(one.ids)) for one in batch], device=hf_model.device)
        kept = torch.arange(first, longest, device=hf_model.device)
        logits = hf_model(input_ids, logits_to_keep=kept, use_cache=False).logits
        for one, row in zip(batch, logits, strict=True):
            scores = row[one.start - first : len(one.ids) - first].float()
            greedy, total = scores.argmax(-1), scores.logsumexp(-1)
            for pair in one.pairs:
                targets = torch.tensor(pairs[pair][1], device=scores.device)
                positions = torch.arange(len(scores) - len(targets), len(scores), device=scores.device)
                log_probs = scores[positions, targets] - total[positions]
                found[pair] = float(log_probs.sum()), bool((greedy[positions] == targets).all())
        after_batch(sum(len(one.pairs) for one in batch))
    return found


def inputs_of(pairs: list[Pair]) -> list[Input]:
    """Distinct inputs, longest first, so that running out of memory occurs at the start."""
    same: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        same.setdefault((*context, *continuation[:-1]), []).append(number)
    inputs = [
        Input(list(ids), numbers, min(len(pairs[number][0]) for number in numbers) - 1) for ids, numbers in same.items()
    ]
    return sorted(inputs, key=lambda one: len(one.ids), reverse=True)


def _batches(inputs: list[Input], batch_size: int, batch_tokens: int, vocab_size: int) -> Iterator[list[Input]]:
    """Consecutive inputs, as many as `batch_size`, `batch_tokens` and the size of the logits allow."""
    batch: list[Input] = []
    first = 0
    for one in inputs:
        reach = min(first, one.start) if batch else one.start
        size = (len(batch) + 1) * (len(batch[0].ids if batch else one.ids) - reach) * vocab_size
        full = batch and (len(batch) == batch_size or (len(batch) + 1) * len(batch[0].ids) > batch_tokens)
        if full or (batch and size > LOGITS):
            yield batch
            batch, reach = [], one.start
        batch.append(one)
        first = reach
    if batch:
        yield batch
