"""One rank in bf16: hidden states are bf16 from the embedding on, layers compute in what comes in and keep nothing twice."""

from typing import Any

import pytest
import torch
from support.packed import ARCHITECTURES, make_model, make_row, relative
from torch import nn

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import apply_lora
from sft_hydra.models.moe import MoE
from sft_hydra.parallel.sharded_module import KeepFp32
from sft_hydra.schema.peft import LoraConfig

FAMILIES = ["qwen3", "qwen3_moe", "nano", "super"]
BATCH = make_batch([make_row([11, 30, 23])], "cpu")
TOKENS, WIDTH = 64, 32


def rounding(family: str) -> DecoderModel:
    model = make_model(ARCHITECTURES[family])
    model.rounds_to = torch.bfloat16
    return model


@pytest.mark.parametrize("lora", [None, LoraConfig(dim=4, match_all_linear=True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_takes_and_gives_bf16(family: str, lora: LoraConfig | None) -> None:
    model = rounding(family)
    if lora is not None:
        apply_lora(model, lora, seed=0)
    seen: dict[str, set[torch.dtype]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen[name] = {inputs[0].dtype, output.dtype} if inputs[0].is_floating_point() else {output.dtype}

        return hook

    for name, module in model.model.named_modules():
        if name not in ("", "layers", "embed_tokens") and not isinstance(module, KeepFp32 | nn.ModuleDict):
            module.register_forward_hook(watch(name))
    forward_loss(model, BATCH)[0].backward()
    assert {dtype for dtypes in seen.values() for dtype in dtypes} == {torch.bfloat16}
    assert len(seen) > 3 * len(model.blocks)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_near_fp32(family: str) -> None:
    exact, rounded = make_model(ARCHITECTURES[family]), rounding(family)
    losses = [forward_loss(model, BATCH)[0] for model in (exact, rounded)]
    assert losses[1].dtype == torch.float32
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=1e-2)
    for loss in losses:
        loss.backward()
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (rounded, exact)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.95


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_a_block_keeps_each_activation_once(family: str) -> None:
    model = rounding(family)
    block = model.blocks[0]
    packed = model.packed(BATCH.position_ids, BATCH.cu_seqlens, BATCH.max_seqlen)  # type: ignore[operator]
    hidden = model.embed(BATCH.input_ids).detach().requires_grad_()  # type: ignore[operator]
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    ):
        block(hidden, packed)
    activations = [
        t for t in kept.values() if t.ndim > 1 and t.shape[0] == TOKENS and t.shape[1:].numel() >= WIDTH // 2
    ]
    exact = [t for t in activations if t.dtype == torch.float32]
    norms = 4  # before attention and after it, on queries and on keys
    routers = sum(isinstance(module, MoE) for module in block.modules())
    assert len(exact) == 2 * norms + routers  # on a CPU a norm keeps its input and what its weight multiplies, in fp32
    inputs = [t for t in activations if t.shape == (TOKENS, WIDTH) and t.dtype == torch.bfloat16]
    assert len(inputs) == 3 - routers  # of q, k and v; of o; of gate and up, which experts take in the order of experts


def test_a_frozen_base_in_bf16_computes_as_rounded_masters_do() -> None:
    frozen = rounding("qwen3")
    frozen.to(torch.bfloat16)
    ours, theirs = (forward_loss(model, BATCH)[0] for model in (frozen, rounding("qwen3")))
    assert relative(ours, theirs) == 0.0
