"""Mixture of experts: a router sends every token to k experts, whose outputs are weighed and summed.

Owns the routing. The families' routers differ in how scores become weights, nothing else. Routers compute in fp32; the
correction bias of a sigmoid router is a buffer and is never trained.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.kernels.grouped import grouped_linear
from sft_hydra.kernels.permute import inverse_of, permuted
from sft_hydra.models.layers import activation
from sft_hydra.models.moe_aux_loss import BalancingLoss, counts_of_sorted
from sft_hydra.parallel.collectives import exchange_counts, exchange_rows
from sft_hydra.parallel.dtensor import local_tensor
from sft_hydra.parallel.sharded_module import KeepFp32, ShardedModule

Routing = tuple[torch.Tensor, torch.Tensor]  # experts (T, k) int64, their weights (T, k) fp32


class SoftmaxRouter(KeepFp32):
    """Qwen3-MoE: probabilities over all experts, the k largest, made to sum to one if `normalise`."""

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
            probabilities = self.balance.see(probabilities, experts)
        weights = probabilities.gather(1, experts)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts, weights


class SigmoidRouter(KeepFp32):
    """Nemotron-H: the k largest of sigmoid scores plus a correction bias; weights are the scores alone, scaled."""

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
            scores = self.balance.see(scores, experts)
        weights = scores.gather(1, experts)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * self.scale


class GroupedLinear(nn.Module):
    """A bias-free linear layer per expert; weight (experts, out, in)."""

    def __init__(self, num_experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.num_experts, self.in_features, self.out_features = num_experts, in_features, out_features
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return grouped_linear(x, local_tensor(self.weight).to(x.dtype), counts)


class Experts(ShardedModule):
    """Feed-forward layers of all experts: gated, with gate and up as one product, or plain. Expert parallelism gives each
    rank a share of the experts, to which tokens travel and from which results come back."""

    columns = ("gate_up_proj", "up_proj", "down_proj")
    over = "ep"
    opaque = ("_travel",)

    def __init__(self, num_experts: int, hidden_size: int, inner_size: int, act: str, *, gated: bool) -> None:
        super().__init__()
        self.act = activation(act)
        self.gate_up_proj = GroupedLinear(num_experts, hidden_size, 2 * inner_size) if gated else None
        self.up_proj = None if gated else GroupedLinear(num_experts, hidden_size, inner_size)
        self.down_proj = GroupedLinear(num_experts, inner_size, hidden_size)
        self.num_experts = num_experts

    def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Weighed sum (T, hidden) over each token's experts; `x` (T, hidden), `experts` and `weights` (T, k)."""
        chosen, order = experts.flatten().sort(stable=True)  # token-and-choice pairs, sorted by expert
        counts = counts_of_sorted(chosen, self.num_experts)
        inverse = inverse_of(order)
        outputs = self._travel(permuted(x, order, inverse, experts.shape[1]), counts)
        by_token = permuted(outputs, inverse, order).unflatten(0, experts.shape)  # (T, k, hidden)
        return (by_token * weights[..., None]).sum(1).to(x.dtype)

    def _travel(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Outputs (N, hidden) of the experts for rows x (N, hidden), of which each expert has `counts` (E,), in order."""
        ranks = self.mesh.ep
        if ranks.size == 1:
            return self._compute(x, counts)
        arriving = exchange_counts(counts, ranks).unflatten(0, (ranks.size, -1))  # from each rank, for each own expert
        leaving = counts.unflatten(0, (ranks.size, -1))
        send, receive = torch.stack([leaving.sum(1), arriving.sum(1)]).tolist()
        expert = torch.arange(arriving.numel(), device=x.device) % arriving.shape[1]
        order = expert.repeat_interleave(arriving.flatten(), output_size=sum(receive)).argsort(stable=True)
        inverse = inverse_of(order)
        here = permuted(exchange_rows(x, send, receive, ranks), order, inverse)
        outputs = permuted(self._compute(here, arriving.sum(0)), inverse, order)
        return exchange_rows(outputs, receive, send, ranks)

    def _compute(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x, counts).chunk(2, dim=-1)
            x = self.act(gate) * up
        elif self.up_proj is not None:
            x = self.act(self.up_proj(x, counts))
        return self.down_proj(x, counts)


class MoE(nn.Module):
    """(T, hidden) -> (T, hidden). Optional: an expert for all tokens, and experts that work in a smaller space."""

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
