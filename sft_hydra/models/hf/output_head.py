"""Determines how a transformers model computes logits from hidden states.

Families scale or soft-cap the logits in model-specific code. The model's forward pass is run with random hidden states in
place of its trunk and an lm_head of a few rows; its logits must match ours, or the model is rejected.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.kernels.loss import softcapped

CAPS = ("final_logit_softcapping", "final_logits_softcapping", "logits_soft_cap", "logit_softcap")  # in configs
ROWS = 7  # of the small lm_head
EXACT = 1e-6  # tolerance on a scale of 1: some models compute logits in fp32


@dataclass(frozen=True, slots=True)
class Head:
    """The lm_head of a transformers model: logits are softcapped(scale * hidden @ weight.T, cap)."""

    name: str  # of the module
    scale: float
    cap: float | None


class _Output:
    """Stand-in for the trunk's output: hidden states, and None for every other attribute."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, _: int) -> torch.Tensor:
        return self.last_hidden_state

    def __getattr__(self, _: str) -> None:
        return None


def find_head(hf_model: Any) -> Head:
    """The lm_head of a transformers model on the meta device. ModelError if logits are not a scaled, soft-capped product of
    hidden states and a weight."""
    family = hf_model.config.model_type
    head = hf_model.get_output_embeddings()
    name = next((name for name, child in hf_model.named_children() if child is head), None)
    if name is None or not isinstance(head, nn.Linear):
        raise ModelError(
            f"model_type {family!r} is not supported: its lm_head is not a linear layer at the top level of the model"
        )
    if head.bias is not None:
        raise ModelError(
            f"model_type {family!r} is not supported: its lm_head has a bias, which the chunked loss does not compute"
        )
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(1, 16, head.in_features, generator=generator, dtype=torch.float64)
        hidden = hidden * torch.logspace(-6, 2, 16, dtype=torch.float64)[:, None]
        weight = torch.randn(ROWS, head.in_features, generator=generator, dtype=torch.float64)
        plain = hidden @ weight.T
        expected = _logits(hf_model, name, hidden, weight)
    cap = next((value for key in CAPS if (value := getattr(hf_model.config, key, None)) is not None), None)
    scale = float((expected[0, 0] / plain[0, 0]).median())
    if not torch.allclose(softcapped(plain * scale, cap), expected, rtol=1e-5, atol=0.0):
        raise ModelError(
            f"model_type {family!r} is not supported: it computes logits with custom code instead of hidden @ W.T"
        )
    return Head(name, 1.0 if abs(scale - 1) < EXACT else scale, cap)


@torch.no_grad()
def _logits(hf_model: Any, name: str, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Logits (1, T, ROWS), fp64, of the model's forward pass for `hidden` (1, T, D) and an lm_head `weight` (ROWS, D)."""
    trunk, head = copy.copy(hf_model.get_decoder()), nn.Linear(weight.shape[1], ROWS, bias=False, dtype=torch.float64)
    trunk.forward = lambda *_, **__: _Output(hidden)
    head.weight.copy_(weight)
    shell = _replaced(_replaced(hf_model, name, head), trunk_name(hf_model), trunk)
    return shell.eval()(input_ids=torch.zeros(hidden.shape[:2], dtype=torch.long), use_cache=False).logits.double()


def trunk_name(hf_model: Any) -> str:
    """Module name of the trunk (ids to hidden states) in a transformers model."""
    trunk = hf_model.get_decoder()
    return next(name for name, module in hf_model.named_modules() if module is trunk)


def _replaced(module: Any, name: str, part: nn.Module) -> Any:
    """A copy of the module that shares everything with it except the sub-module `name`, which is `part`."""
    first, _, rest = name.partition(".")
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    shell._modules[first] = _replaced(module._modules[first], rest, part) if rest else part
    return shell
