"""Mixture of experts: a router assigns every token to k experts, whose outputs are weighted and summed.

The families' routers differ only in how scores become weights. Routers compute in fp32; the correction bias of a sigmoid
router (DeepSeek-V3) is a buffer without gradient.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.activation import gated_halves
from sft_hydra.kernels.grouped import grouped_linear
from sft_hydra.kernels.permute import combined, inverse_of, permuted
from sft_hydra.models.layers import activation
from sft_hydra.models.moe_aux_loss import BalancingLoss, counts_of_sorted
from sft_hydra.models.weight_copies import CastWeight
from sft_hydra.parallel.collectives import exchange_counts, exchange_rows
from sft_hydra.parallel.sharded_module import KeepFp32, ShardedModule

Routing = tuple[torch.Tensor, torch.Tensor]  # experts (T, k) int64, their weights (T, k) fp32


class SoftmaxRouter(KeepFp32):
    """Qwen3-MoE router: softmax over all experts, top k, renormalized to sum to one if `normalise`."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, *, normalise: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.top_k = top_k
        self.normalise = normalise
        self.balance: BalancingLoss | None = None

    def forward(self, x: torch.Tensor) -> Routing:
        probabilities = F.linear(x.float(), self.weight.float()).softmax(-1)
        experts = probabilities.topk(self.top_k, dim=-1).indices
        if self.balance is not None:
            probabilities = self.balance.observe(probabilities, experts)
        weights = probabilities.gather(1, experts)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts, weights


class SigmoidRouter(KeepFp32):
    """Nemotron-H router (as DeepSeek-V3): top k of sigmoid scores plus a correction bias; weights are the scores without the
    bias, times `scale`."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, *, normalise: bool, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.e_score_correction_bias: torch.Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(num_experts))
        self.top_k = top_k
        self.normalise = normalise
        self.scale = scale
        self.balance: BalancingLoss | None = None

    def forward(self, x: torch.Tensor) -> Routing:
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        experts = (scores + self.e_score_correction_bias).topk(self.top_k, dim=-1).indices
        if self.balance is not None:
            scores = self.balance.observe(scores, experts)
        weights = scores.gather(1, experts)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * self.scale


class GroupedLinear(CastWeight):
    """A bias-free linear layer per expert; weight (experts, out, in)."""

    def __init__(self, num_experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.num_experts, self.in_features, self.out_features = num_experts, in_features, out_features
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return grouped_linear(x, self.cast("weight", x.dtype), counts)


class Experts(ShardedModule):
    """Feed-forward layers of all experts: gated, with gate and up as one product, or plain. Expert parallelism splits the
    experts over ranks; tokens are dispatched to them and combined by all-to-all (GShard, Lepikhin et al. 2020)."""

    columns = ("gate_up_proj", "up_proj", "down_proj")
    over = "ep"
    opaque = ("_dispatch",)

    def __init__(self, num_experts: int, hidden_size: int, inner_size: int, act: str, *, gated: bool) -> None:
        super().__init__()
        self.act = activation(act)
        self.gate_up_proj = GroupedLinear(num_experts, hidden_size, 2 * inner_size) if gated else None
        self.up_proj = None if gated else GroupedLinear(num_experts, hidden_size, inner_size)
        self.down_proj = GroupedLinear(num_experts, inner_size, hidden_size)
        self.num_experts = num_experts

    def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Weighted sum (T, hidden) over each token's experts; `x` (T, hidden), `experts` and `weights` (T, k)."""
        chosen, order = experts.flatten().sort(stable=True)  # (token, expert) pairs, sorted by expert
        counts = counts_of_sorted(chosen, self.num_experts)
        inverse = inverse_of(order)
        outputs = self._dispatch(permuted(x, order, inverse, experts.shape[1]), counts)
        return combined(outputs, weights, inverse, order).to(x.dtype)

    def _dispatch(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Expert outputs (N, hidden) for x (N, hidden) sorted by expert, `counts` (E,) rows each; all-to-all if ep > 1."""
        ranks = self.mesh.ep
        if ranks.size == 1:
            return self._compute(x, counts)
        arriving = exchange_counts(counts, ranks).unflatten(
            0, (ranks.size, -1)
        )  # from each rank, for each local expert
        leaving = counts.unflatten(0, (ranks.size, -1))
        send, receive = torch.stack([leaving.sum(1), arriving.sum(1)]).tolist()
        expert = torch.arange(arriving.numel(), device=x.device) % arriving.shape[1]
        order = expert.repeat_interleave(arriving.flatten(), output_size=sum(receive)).argsort(stable=True)
        inverse = inverse_of(order)
        local = permuted(exchange_rows(x, send, receive, ranks), order, inverse)
        outputs = permuted(self._compute(local, arriving.sum(0)), inverse, order)
        return exchange_rows(outputs, receive, send, ranks)

    def _compute(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        if self.gate_up_proj is not None:
            x = gated_halves(self.act, self.gate_up_proj(x, counts))
        elif self.up_proj is not None:
            x = self.act(self.up_proj(x, counts))
        return self.down_proj(x, counts)


class MoE(nn.Module):
    """(T, hidden) -> (T, hidden). Optional: a shared expert for all tokens, and projections to a smaller latent space in
    which the experts work."""

    def __init__(
        self,
        gate: SoftmaxRouter | SigmoidRouter,
        experts: Experts,
        *,
        shared_experts: nn.Module | None = None,
        latent: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.shared_experts = shared_experts
        self.fc1_latent_proj = latent[0] if latent else None
        self.fc2_latent_proj = latent[1] if latent else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        experts, weights = self.gate(x)
        inner = x if self.fc1_latent_proj is None else self.fc1_latent_proj(x)
        out = self.experts(inner, experts, weights)
        if self.fc2_latent_proj is not None:
            out = self.fc2_latent_proj(out)
        return out if self.shared_experts is None else out + self.shared_experts(x)
