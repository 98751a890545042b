"""How a transformers model makes logits of hidden states, found out by asking it.

Families multiply, divide or cap what the head gives, each in code of its own. The model's own forward pass is run on made
up hidden states in place of its trunk and a head of a few rows; what comes out must be what we compute, or it is refused.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.kernels.loss import softcapped

CAPS = ("final_logit_softcapping", "final_logits_softcapping", "logits_soft_cap", "logit_softcap")  # in configs
ROWS = 7
EXACT = 1e-6  # some models compute logits in fp32


@dataclass(frozen=True, slots=True)
class Head:
    """Logits are softcapped(scale * hidden @ weight.T, cap)."""

    name: str  # of the module
    scale: float
    cap: float | None


class _Output:
    """What a trunk gives: hidden states, and None for all else that may be asked of it."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, _: int) -> torch.Tensor:
        return self.last_hidden_state

    def __getattr__(self, _: str) -> None:
        return None


def find_head(theirs: Any) -> Head:
    """The head of a transformers model on the meta device. ModelError if it is more than a scaled and capped product."""
    family = theirs.config.model_type
    head = theirs.get_output_embeddings()
    name = next((name for name, child in theirs.named_children() if child is head), None)
    if name is None or not isinstance(head, nn.Linear):
        raise ModelError(f"model_type {family!r}: the head is not a linear layer beside the model's trunk")
    if head.bias is not None:
        raise ModelError(f"model_type {family!r}: the head has a bias, which our loss does not know")
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(1, 16, head.in_features, generator=generator, dtype=torch.float64)
        hidden = hidden * torch.logspace(-6, 2, 16, dtype=torch.float64)[:, None]
        weight = torch.randn(ROWS, head.in_features, generator=generator, dtype=torch.float64)
        plain = hidden @ weight.T
        given = _logits(theirs, name, hidden, weight)
    cap = next((value for key in CAPS if (value := getattr(theirs.config, key, None)) is not None), None)
    scale = float((given[0, 0] / plain[0, 0]).median())
    if not torch.allclose(softcapped(plain * scale, cap), given, rtol=1e-5, atol=0.0):
        raise ModelError(
            f"model_type {family!r} makes logits of hidden states in a way of its own, not by a plain product"
        )
    return Head(name, 1.0 if abs(scale - 1) < EXACT else scale, cap)


@torch.no_grad()
def _logits(theirs: Any, name: str, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the model's own forward pass makes of `hidden` with a head of these rows, in fp64."""
    trunk, head = copy.copy(theirs.get_decoder()), nn.Linear(weight.shape[1], ROWS, bias=False, dtype=torch.float64)
    trunk.forward = lambda *_, **__: _Output(hidden)
    head.weight.copy_(weight)
    shell = _replaced(_replaced(theirs, name, head), trunk_name(theirs), trunk)
    return shell.eval()(input_ids=torch.zeros(hidden.shape[:2], dtype=torch.long), use_cache=False).logits.double()


def trunk_name(theirs: Any) -> str:
    """Where in a transformers model the part is that gives hidden states of ids."""
    trunk = theirs.get_decoder()
    return next(name for name, module in theirs.named_modules() if module is trunk)


def _replaced(module: Any, name: str, part: nn.Module) -> Any:
    """A copy of the module, which shares all with it but the part of this name."""
    first, _, rest = name.partition(".")
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    shell._modules[first] = _replaced(module._modules[first], rest, part) if rest else part
    return shell
