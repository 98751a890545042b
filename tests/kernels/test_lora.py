"""A linear layer with an adapter as one operation is its formula, in value and gradients."""

import pytest
import torch
import torch.nn.functional as F
from support.packed import relative

from sft_hydra.kernels.lora import lora_linear
from sft_hydra.parallel.activation_checkpointing import checkpoint_activations


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (9, 12), "weight": (7, 12), "bias": (7,), "a": (3, 12), "b": (7, 3), "dropped": (9, 12)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def formula(x, weight, bias, a, b, scale, dropped=None):
    return F.linear(x, weight, bias) + F.linear(F.linear(x if dropped is None else dropped, a), b) * scale


def leaves(tensors, frozen=()):
    return {name: t.clone().requires_grad_(name not in frozen) for name, t in tensors.items()}


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("x", "weight"), ()])
@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_the_formula(tensors, frozen, drops, biased):
    if not drops:
        del tensors["dropped"]
    ours, theirs = leaves(tensors, frozen), leaves(tensors, frozen)
    for each in (ours, theirs):
        each["bias"] = each["bias"] if biased else None
    out, expected = lora_linear(**ours, scale=0.7), formula(**theirs, scale=0.7)
    assert relative(out, expected) < 1e-6
    upstream = torch.randn_like(expected)
    out.backward(upstream)
    expected.backward(upstream)
    for name, mine in ours.items():
        if mine is not None and mine.requires_grad:
            assert relative(mine.grad, theirs[name].grad) < 1e-6, name


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_same_bits_under_recompute(tensors, kind):
    del tensors["dropped"]

    class Layer(torch.nn.Module):
        def forward(self, x, rest):
            return lora_linear(x.sin(), **rest, scale=0.7).cos()

    grads = []
    for way in ("none", kind):
        layer, mine = Layer(), leaves(tensors, ("weight", "bias"))
        checkpoint_activations(layer, way)
        layer(mine.pop("x"), mine).sum().backward()
        grads.append([mine["a"].grad, mine["b"].grad])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_equals_the_formula_compiled(tensors):
    del tensors["dropped"]
    mine = leaves(tensors, ("weight", "bias"))
    out = torch.compile(lora_linear, backend="eager", fullgraph=True)(**mine, scale=0.7)
    assert relative(out, formula(**tensors, scale=0.7)) < 1e-6


def test_autocast(tensors):
    del tensors["dropped"]
    mine = leaves(tensors, ("weight", "bias"))
    with torch.autocast("cpu", torch.bfloat16):
        out = lora_linear(**mine, scale=0.7)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert relative(out.float(), formula(**tensors, scale=0.7)) < 2e-2
    assert mine["a"].grad.dtype == torch.float32
