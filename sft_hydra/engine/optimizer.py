"""Which parameters are updated by what: AdamW, or Muon for hidden matrices and AdamW for the rest.

Owns the parameter groups. Rates in the groups are the peaks; the schedule scales them each step.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sft_hydra.config.schema import SftConfig
from sft_hydra.config.schema_optim import Muon, Optimizer

Named = list[tuple[str, nn.Parameter]]


class OptimizerSet:
    """One or several torch optimizers over one model, used as one. Groups keep their peak rate as `peak_lr`."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self._owner = {p: part for part in parts for group in part.param_groups for p in group["params"]}
        for group in self.param_groups():
            group["peak_lr"] = group["lr"]

    @property
    def kinds(self) -> list[str]:
        """Names of the algorithms, as a checkpoint remembers them."""
        return [type(part).__name__ for part in self.parts]

    def param_groups(self) -> Iterator[dict[str, Any]]:
        for part in self.parts:
            yield from part.param_groups

    def parameters(self) -> list[nn.Parameter]:
        return list(self._owner)

    def set_rate(self, factor: float) -> None:
        """Every rate becomes its peak times `factor`."""
        for group in self.param_groups():
            group["lr"] = group["peak_lr"] * factor

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_of(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Moments of one parameter, empty before the first step."""
        return self._owner[parameter].state.get(parameter, {})

    def set_state(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state_of` gave."""
        self._owner[parameter].state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def build_optimizer(model: nn.Module, cfg: SftConfig) -> OptimizerSet:
    """The optimizer that `cfg.optimizer` asks for, over all parameters that require a gradient."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = cfg.optimizer
    if not isinstance(optimizer, Muon):
        return OptimizerSet([_adamw([(optimizer.lr, named)], optimizer)])
    matrices = [p for name, p in named if _is_hidden_matrix(name, p)]
    embedding = [(name, p) for name, p in named if _is_embedding(name)]
    head = [(name, p) for name, p in named if _is_head(name)]
    rest = [(n, p) for n, p in named if not (_is_hidden_matrix(n, p) or _is_embedding(n) or _is_head(n))]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(_muon(matrices, optimizer))
    if embedding or head or rest:
        embedding_lr = optimizer.lr if optimizer.embedding_lr is None else optimizer.embedding_lr
        head_lr = optimizer.lr if optimizer.unembedding_lr is None else optimizer.unembedding_lr
        parts.append(_adamw([(optimizer.lr, rest), (embedding_lr, embedding), (head_lr, head)], optimizer))
    return OptimizerSet(parts)


def _muon(matrices: list[nn.Parameter], optimizer: Muon) -> torch.optim.Muon:
    return torch.optim.Muon(
        matrices,
        lr=optimizer.matrix_lr * optimizer.init_lr_frac,
        weight_decay=optimizer.weight_decay,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        ns_steps=optimizer.ns_steps,
    )


def _adamw(rated: list[tuple[float, Named]], optimizer: Optimizer) -> torch.optim.AdamW:
    """AdamW over parameters with their rates; matrices and everything else are groups apart, because of the decay."""
    groups = []
    for lr, named in rated:
        decayed = [p for name, p in named if p.ndim > 1 and not _is_embedding(name)]
        plain = [p for name, p in named if p.ndim == 1 or _is_embedding(name)]
        for parameters, decay in ((decayed, optimizer.weight_decay), (plain, 0.0)):
            if parameters:
                groups.append({"params": parameters, "lr": lr * optimizer.init_lr_frac, "weight_decay": decay})
    beta1, beta2 = optimizer.betas
    return torch.optim.AdamW(groups, betas=(beta1, beta2), eps=optimizer.eps, fused=True)


def _is_embedding(name: str) -> bool:
    return name == "model.embed_tokens.weight"


def _is_head(name: str) -> bool:
    return name.startswith("lm_head.")


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not _is_embedding(name) and not _is_head(name)
