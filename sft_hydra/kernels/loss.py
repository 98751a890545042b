"""Fused lm_head and cross entropy, in chunks of tokens: no (tokens, vocabulary) tensor is materialized. Gradients are
computed in the forward pass, as in Liger Kernel's fused linear cross entropy (Hsu et al. 2024).

The softmax is computed in fp32, in place where its Triton kernel is chosen; sums and the head's gradient are fp32. Only supervised tokens reach the head. A
frozen head gets no gradient buffer.
"""

from typing import Any

import torch
import torch.nn.functional as F

from sft_hydra.kernels.fused_choice import is_fused
from sft_hydra.records import IGNORE_INDEX

CHUNK = 1024  # tokens whose logits exist at the same time
FUSED_CHUNK = 4096  # the same where they exist once, in the compute dtype


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk: int | None = None,
    *,
    trained: torch.Tensor | None = None,
    cap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over supervised tokens of cross_entropy(softcapped(hidden @ weight.T, cap), targets), and the loss of each token.

    `hidden` (T, D), `weight` (V, D), `targets` (T,) int64 with IGNORE_INDEX where there is no loss, `trained` (N,) int64
    indices of the supervised tokens; None computes them, which synchronizes with the device. Returns the sum (scalar, with
    gradient) and the per-token loss (T,) in nats (no gradient, zero without a target); both fp32.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()  # the function below would compute gradients regardless
    if trained is None:
        trained = (targets != IGNORE_INDEX).nonzero()[:, 0]
    if chunk is None:
        chunk = FUSED_CHUNK if is_fused("cross_entropy", hidden) else CHUNK
    loss_sum, per_token = _LinearCrossEntropy.apply(hidden, weight, targets, trained, chunk, cap)
    return loss_sum, per_token


def softcapped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap * tanh(logits / cap), of the same shape; `logits` unchanged if `cap` is None."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, cap: float | None, gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy (n,) fp32 of the soft-capped `logits` (n, V), and with `gradient` its gradient for them, in their dtype.
    The logits are overwritten."""
    if is_fused("cross_entropy", logits):
        from sft_hydra.kernels.fused import cross_entropy as triton_cross_entropy

        return triton_cross_entropy.cross_entropy_(logits, targets, cap, gradient), logits
    labels, capped = targets[:, None], softcapped(logits.float(), cap)
    log_sum = capped.logsumexp(-1, keepdim=True)
    losses = (log_sum - capped.gather(1, labels))[:, 0]
    if not gradient:
        return losses, logits
    slope = None if cap is None else 1 - (capped / cap).square()
    grad = capped.sub_(log_sum).exp_()  # softmax minus one-hot
    grad.scatter_add_(1, labels, torch.full_like(log_sum, -1.0))
    if slope is not None:
        grad *= slope
    return losses, grad.to(logits.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while a chunk's logits exist; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        trained: torch.Tensor,
        chunk: int,
        cap: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        per_token = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
        head = weight.to(hidden.dtype)
        wants = grad_hidden is not None or grad_weight is not None
        for index in trained.split(chunk):
            inputs = hidden[index]
            per_token[index], grad = _cross_entropy(F.linear(inputs, head), targets[index], cap, wants)
            if grad_hidden is not None:
                grad_hidden[index] = grad @ head
            if grad_weight is not None:
                grad_weight += grad.T @ inputs
            del grad  # free it before the next chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(per_token)
        return per_token.sum(), per_token

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_sum  # a 0-dimensional tensor does not change the dtype
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_sum).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None
