"""A base in four or eight bits: values, losses and gradients are those of bitsandbytes, transformers and the peft library."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from peft import PeftModel
from safetensors.torch import load_file
from support.packed import ARCHITECTURES, alone, logits_of, make_row, oracle_of, relative
from support.quantized import quantized, saved
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sft_hydra.checkpoint.adapter import write_adapter
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.models.build import as_transformers, use_published_limits
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.quantized_weight import QuantizedWeight
from sft_hydra.schema.peft import LoraConfig

ROWS = [make_row([8, 1, 30], seed=4)]
WHOLE_BLOCKS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 16,
    "moe_intermediate_size": 64,
}
WIDE_HYBRID = WHOLE_BLOCKS | {"mamba_num_heads": 8, "mamba_head_dim": 16, "hybrid_override_pattern": "M*-M"}


def same_gradients(model: DecoderModel, lora: LoraConfig, theirs: Any, folder: Path) -> None:
    """Losses and gradients of the peft library's model with the same adapters."""
    loss, _ = forward_loss(model, make_batch(ROWS, "cpu"))
    loss.backward()
    expected = alone(theirs, ROWS)[1]
    expected.backward()
    assert relative(loss, expected) < 1e-6
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    folder.mkdir()
    write_adapter(model.config, gradients, lora, "base", folder)
    others = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    written = load_file(folder / "adapter_model.safetensors")
    assert written.keys() == others.keys()
    for name, gradient in others.items():
        assert relative(written[name], gradient) < 1e-5, name


@pytest.mark.parametrize(("family", "sizes"), [("qwen3", WHOLE_BLOCKS), ("llama", WHOLE_BLOCKS), ("nano", WIDE_HYBRID)])
def test_an_adapter_is_peft_s_over_the_base_that_transformers_loads_in_nf4(
    family: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    folder = saved(ARCHITECTURES[family] | sizes, tmp_path / "base")
    lora = LoraConfig(
        dim=4, alpha=6.0, target_modules=["q_proj", "o_proj", "in_proj" if family == "nano" else "up_proj"]
    )
    model = quantized(folder, "nf4", lora)
    write = {name: p for name, p in model.named_parameters() if p.requires_grad}
    (tmp_path / "adapter").mkdir()
    write_adapter(model.config, write, lora, str(folder), tmp_path / "adapter")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.float32)
    use_published_limits(base)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    theirs.train()  # in evaluation bitsandbytes multiplies in bf16 on CPUs that can
    same_gradients(model, lora, theirs, tmp_path / "gradients")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("qwen2", ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]),
        ("qwen3_moe", ["q_proj", "*.experts.*"]),
        ("super", ["q_proj", "in_proj", "shared_experts.up_proj"]),
    ],
)
def test_gradients_are_the_peft_librarys_over_the_same_dequantized_base(
    family: str, targets: list[str], kind: str, tmp_path: Path
) -> None:
    """Sizes that are no multiples of a block too; routed experts, which transformers does not quantize."""
    folder = saved(ARCHITECTURES[family], tmp_path / "base")
    lora = LoraConfig(dim=4, alpha=6.0, target_modules=targets)
    model = quantized(folder, kind, lora)
    base = oracle_of(quantized(folder, kind))
    (tmp_path / "adapter").mkdir()
    write_adapter(
        model.config, {n: p for n, p in model.named_parameters() if p.requires_grad}, lora, "base", tmp_path / "adapter"
    )
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    same_gradients(model, lora, theirs, tmp_path / "gradients")
    batch = make_batch(ROWS, "cpu")
    assert relative(alone(as_transformers(model), ROWS)[0], logits_of(model, batch)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 128), (33, 7), (512, 192)])
def test_values_are_those_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    nf4 = QuantizedWeight("nf4", weight.shape, dtype)
    assert torch.equal(nf4.unpack(nf4.pack(weight)), functional.dequantize_4bit(codes, state))
    int8 = QuantizedWeight("int8", weight.shape, dtype)
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    assert torch.equal(int8.unpack(int8.pack(weight)), functional.int8_vectorwise_dequant(codes, scales).to(dtype))


def test_four_bits_are_a_quarter_of_bf16() -> None:
    shape = torch.Size([1536, 576])
    bf16 = 2 * shape.numel()
    assert QuantizedWeight("nf4", shape, torch.bfloat16).packed_shape[0] < 0.26 * bf16
    assert QuantizedWeight("int8", shape, torch.bfloat16).packed_shape[0] < 0.51 * bf16


def test_nothing_of_a_dequantized_weight_is_kept_for_the_backward_pass(tmp_path: Path) -> None:
    model = quantized(saved(ARCHITECTURES["qwen3"], tmp_path / "base"), "nf4", LoraConfig(dim=4))
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward_loss(model, make_batch(ROWS, "cpu"))
    shapes = {tuple(tensor.shape) for tensor in kept}
    of_layers = {code.shape for code in model.quantized.values()}
    assert not shapes & {tuple(shape) for shape in of_layers} | {tuple(reversed(shape)) for shape in of_layers} & shapes
    assert any(tensor.dtype is torch.uint8 for tensor in kept)
