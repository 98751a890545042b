"""Even use of experts, where the config asks for it: a balancing loss for softmax routers, a moving bias for sigmoid ones.

Owns that both go by the whole global batch, so that accumulation and layouts change nothing: counts are summed over all
micro-batches and ranks. The balancing loss is that of transformers (Switch Transformer, over all layers together):
E * sum over experts of (share of choices) * (mean probability). Its gradient needs shares of the whole batch, so a pass
without gradients counts them first.
"""

import torch

from sft_hydra.engine.batch import Batch
from sft_hydra.engine.microbatches import forward_only
from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.moe import SigmoidRouter, SoftmaxRouter
from sft_hydra.models.moe_aux_loss import BalancingLoss
from sft_hydra.parallel.collectives import sum_over_ranks
from sft_hydra.schema.config import SftConfig


def attach_router_counters(model: DecoderModel, cfg: SftConfig) -> None:
    """Have routers count, if the config wants anything of them. Once, before training."""
    model.balances = []
    if not cfg.train.router_aux_loss and not cfg.train.router_bias_update_rate:
        return
    if model.pipeline is not None:
        raise ConfigError("train.router_aux_loss and router_bias_update_rate do not go with stages; set parallel.pp=1")
    for router in model.modules():
        wanted = (isinstance(router, SoftmaxRouter) and cfg.train.router_aux_loss) or (
            isinstance(router, SigmoidRouter) and cfg.train.router_bias_update_rate
        )
        if wanted:
            router.balance = BalancingLoss(len(router.weight), model.device)
            model.balances.append(router.balance)


def set_balancing_loss(model: DecoderModel, batches: list[Batch], cfg: SftConfig) -> float | None:
    """Make the coming backward passes add the gradient of `train.router_aux_loss` times the balancing loss of these batches
    (all of a step). Returns that loss, without its factor; None if it is off. Counts begin anew, whatever came between."""
    balances = model.balances
    for balance in balances:
        balance.forget()
        balance.pull = None
    if not cfg.train.router_aux_loss or not balances:
        return None
    forward_only(model, batches)
    experts = len(balances[0].counts)
    own = torch.stack([balance.counts.double() for balance in balances]).sum(0).tolist()
    own += torch.stack([balance.sums.double() for balance in balances]).sum(0).tolist()
    own += [float(sum(balance.tokens for balance in balances))]
    *sums, tokens = sum_over_ranks(own, model.mesh)
    shares, means = torch.tensor(sums, dtype=torch.float64).div(tokens).split(experts)
    for balance in balances:
        balance.pull = (cfg.train.router_aux_loss * experts / tokens * shares).float().to(model.device)
    return float(experts * (shares * means).sum())


def update_router_bias(model: DecoderModel, rate: float) -> None:
    """After a step: experts that got more tokens than the mean of their layer lose `rate` of their bias, others gain it."""
    if not rate or not model.balances:
        return
    routers = [module for module in model.modules() if isinstance(module, SigmoidRouter)]
    own = torch.stack([balance.counts.double() for balance in model.balances])
    counts = torch.tensor(sum_over_ranks(own.flatten().tolist(), model.mesh), dtype=torch.float64).view(own.shape)
    for router, count in zip(routers, counts, strict=True):
        bias = router.e_score_correction_bias
        bias += rate * (count.mean() - count).sign().to(bias)
