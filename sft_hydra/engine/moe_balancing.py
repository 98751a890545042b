"""Expert load balancing: an auxiliary loss for softmax routers, an adjusted selection bias for sigmoid routers.

Both use token counts of the global batch, summed over micro-batches and ranks, so gradient accumulation and the layout do
not change them. The auxiliary loss is the Switch Transformer loss (Fedus et al. 2021) as transformers computes it, over all
layers together: E * sum over experts of (share of choices) * (mean probability). Its gradient needs the shares of the
global batch, so a forward pass without gradients counts them first. The bias update is the auxiliary-loss-free balancing of
DeepSeek-V3 (Wang et al. 2024).
"""

import torch

from sft_hydra.engine.batch import Batch
from sft_hydra.engine.microbatches import forward_only
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.moe import SigmoidRouter, SoftmaxRouter
from sft_hydra.models.moe_aux_loss import BalancingLoss
from sft_hydra.parallel.collectives import max_over_ranks, sum_over_ranks
from sft_hydra.schema.train import TrainConfig


def attach_router_counters(model: DecoderModel, train: TrainConfig) -> None:
    """Attach token counters to the routers that the config balances. Called once, before training."""
    model.balances = []
    if not train.router_aux_loss and not train.router_bias_update_rate:
        return
    for router in model.modules():
        is_balanced = (isinstance(router, SoftmaxRouter) and train.router_aux_loss) or (
            isinstance(router, SigmoidRouter) and train.router_bias_update_rate
        )
        if is_balanced:
            router.balance = BalancingLoss(len(router.weight), model.device)
            model.balances.append(router.balance)


def set_balancing_loss(model: DecoderModel, batches: list[Batch], factor: float) -> float | None:
    """Make the next backward passes add the gradient of `factor` (train.router_aux_loss) times the balancing loss of `batches` (all
    micro-batches of a step). Resets the counters. Returns the loss without its factor; None if it is off."""
    balances = model.balances
    for balance in balances:
        balance.reset()
        balance.gradient = None
    experts = _experts(model) if factor else 0
    if not experts:
        return None
    forward_only(model, batches)
    local = [0.0] * (2 * experts + 1)  # a pipeline stage may have no routers
    if balances:
        local = torch.stack([balance.counts.double() for balance in balances]).sum(0).tolist()
        local += torch.stack([balance.sums.double() for balance in balances]).sum(0).tolist()
        local += [float(sum(balance.tokens for balance in balances))]
    *sums, tokens = sum_over_ranks(local, model.mesh)
    shares, means = torch.tensor(sums, dtype=torch.float64).div(tokens).split(experts)
    for balance in balances:
        balance.gradient = (factor * experts / tokens * shares).float().to(model.device)
    return float(experts * (shares * means).sum())


def update_router_bias(model: DecoderModel, rate: float) -> None:
    """After a step: lower the selection bias of experts with more tokens than their layer's mean by `rate`, raise that of
    the others by `rate` (DeepSeek-V3)."""
    experts = _experts(model) if rate else 0
    if not experts:
        return
    routers = {
        int(name.split(".layers.")[1].split(".")[0]): module
        for name, module in model.named_modules()
        if isinstance(module, SigmoidRouter)
    }  # by layer: each pipeline stage has its own
    local = torch.zeros(model.config.num_hidden_layers, experts, dtype=torch.float64)
    for layer, router in routers.items():
        assert router.balance is not None
        local[layer] = router.balance.counts.double()
    counts = torch.tensor(sum_over_ranks(local.flatten().tolist(), model.mesh), dtype=torch.float64).view(local.shape)
    for layer, router in routers.items():
        bias = router.e_score_correction_bias
        bias += rate * (counts[layer].mean() - counts[layer]).sign().to(bias)


def _experts(model: DecoderModel) -> int:
    """Experts of a layer whose router is balanced, on any rank; 0 if none is."""
    return int(max_over_ranks(max((len(balance.counts) for balance in model.balances), default=0), model.mesh))
