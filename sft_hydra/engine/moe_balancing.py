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
from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.moe import SigmoidRouter, SoftmaxRouter
from sft_hydra.models.moe_aux_loss import BalancingLoss
from sft_hydra.parallel.collectives import sum_over_ranks
from sft_hydra.schema.config import TrainConfig


def attach_router_counters(model: DecoderModel, train: TrainConfig) -> None:
    """Attach token counters to the routers that the config balances. Called once, before training.

    ConfigError with pipeline parallelism, which is not supported.
    """
    model.balances = []
    if not train.router_aux_loss and not train.router_bias_update_rate:
        return
    if model.pipeline is not None:
        raise ConfigError(
            "train.router_aux_loss and train.router_bias_update_rate are not supported with pipeline parallelism; set "
            "parallel.pp=1"
        )
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
    if not factor or not balances:
        return None
    forward_only(model, batches)
    experts = len(balances[0].counts)
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
    if not rate or not model.balances:
        return
    routers = [module for module in model.modules() if isinstance(module, SigmoidRouter)]
    local = torch.stack([balance.counts.double() for balance in model.balances])
    counts = torch.tensor(sum_over_ranks(local.flatten().tolist(), model.mesh), dtype=torch.float64).view(local.shape)
    for router, count in zip(routers, counts, strict=True):
        bias = router.e_score_correction_bias
        bias += rate * (count.mean() - count).sign().to(bias)
