"""Cross entropy of logits in any dtype, in fp32, and its gradient written over the logits, in one kernel, in Triton."""

import torch
import triton
import triton.language as tl

from sft_hydra.kernels.custom_operator import operator

BLOCK = 4096


@triton.jit
def _capped(logits, cap, HAS_CAP: tl.constexpr):
    """cap * tanh(logits / cap), by a sigmoid, which never overflows."""
    if HAS_CAP:
        logits = cap * (2 * tl.sigmoid(2 * logits / cap) - 1)
    return logits


@triton.jit
def _kernel(
    logits, targets, losses, vocab, cap, HAS_CAP: tl.constexpr, WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocab
    largest = float("-inf")
    total = 0.0
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(logits + columns, mask=columns < vocab, other=0.0).to(tl.float32)
        value = tl.where(columns < vocab, _capped(value, cap, HAS_CAP), float("-inf"))
        higher = tl.maximum(largest, tl.max(value, 0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(value - higher), 0)
        largest = higher
    log_sum = largest + tl.log(total)
    target = tl.load(targets + row)
    at_target = _capped(tl.load(logits + target).to(tl.float32), cap, HAS_CAP)
    tl.store(losses + row, log_sum - at_target)
    if WITH_GRADIENT:
        tl.debug_barrier()  # the logit of the target is read before it is written over
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < vocab
            value = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32)
            value = _capped(value, cap, HAS_CAP)
            grad = tl.exp(value - log_sum) - tl.where(columns == target, 1.0, 0.0)
            if HAS_CAP:
                grad *= 1 - (value / cap) * (value / cap)
            tl.store(logits + columns, grad.to(logits.dtype.element_ty), mask=inside)


def _run(logits: torch.Tensor, targets: torch.Tensor, cap: float | None, gradient: bool) -> torch.Tensor:
    losses = _fake(logits, targets, cap, gradient)
    rows, vocab = logits.shape
    if rows:
        _kernel[(rows,)](
            logits, targets, losses, vocab, 1.0 if cap is None else cap,
            HAS_CAP=cap is not None, WITH_GRADIENT=gradient, BLOCK=BLOCK, num_warps=16,
        )  # fmt: skip
    return losses


def _fake(logits: torch.Tensor, targets: torch.Tensor, cap: float | None, gradient: bool) -> torch.Tensor:
    return logits.new_empty(len(logits), dtype=torch.float32)


cross_entropy_ = operator(
    "cross_entropy_(Tensor(a!) logits, Tensor targets, float? cap, bool gradient) -> Tensor", _run, _fake
)
cross_entropy_.__doc__ = """Cross entropy (n,) fp32 of `logits` (n, vocab), contiguous and soft-capped by `cap`, with
`targets` (n,) int64. With `gradient`, the logits become the gradient of the sum for the logits before the cap."""


def example(device: torch.device) -> None:
    """One pass with gradient."""
    logits = torch.ones(3, 5000, device=device, dtype=torch.bfloat16)
    cross_entropy_(logits, torch.zeros(3, device=device, dtype=torch.int64), None, True).sum().item()
