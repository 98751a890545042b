"""Estimates of memory against what torch allocates in two steps of training, on one rank and on several."""

import dataclasses
from typing import Any

import pytest
from support.memory import training_peak
from support.ranks import run_ranks

from sft_hydra.planning.estimate import estimate_memory
from sft_hydra.planning.topology import run_layout
from sft_hydra.schema.config import Device, SftConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.optim import AdamW
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision, Recompute

DENSE: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": True,
    "max_position_embeddings": 40960, "rope_theta": 1e6,
}  # fmt: skip
MIXTURE = DENSE | {
    "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
    "norm_topk_prob": True, "tie_word_embeddings": False,
}  # fmt: skip
HYBRID: dict[str, Any] = {
    "model_type": "nemotron_h", "vocab_size": 4096, "hidden_size": 256, "hybrid_override_pattern": "ME*ME-",
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 512, "mamba_num_heads": 8,
    "mamba_head_dim": 64, "n_groups": 2, "ssm_state_size": 32, "conv_kernel": 4, "chunk_size": 64, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 256, "moe_shared_expert_intermediate_size": 512,
    "norm_topk_prob": True, "max_position_embeddings": 40960,
}  # fmt: skip
BF16 = {"precision": Precision.bf16}
AGAIN = {"recompute": Recompute.full}
QLORA = LoraConfig(dim=16, quantize_base="nf4")
SELECTIVE = {"recompute": Recompute.selective}


@dataclasses.dataclass(frozen=True)
class Case:
    architecture: dict[str, Any]
    length: int = 1024
    lora: LoraConfig | None = None
    ranks: int = 1
    parallel: dict[str, int] = dataclasses.field(default_factory=dict)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    state_bits: int = 32

    def config(self) -> SftConfig:
        cfg = SftConfig(model=ModelConfig(name="test", architecture=self.architecture), device=Device.cpu)
        cfg.seq_length, cfg.peft, cfg.cluster.gpus_per_node = self.length, self.lora, self.ranks
        cfg.parallel = dataclasses.replace(cfg.parallel, **({"tp": 1, "pp": 1, "cp": 1, "ep": 1} | self.parallel))
        sizes = {"global_batch_size": 2 * run_layout(cfg, self.architecture).dp, "train_iters": 2}
        cfg.train = dataclasses.replace(cfg.train, **(sizes | {"precision": Precision.fp32} | self.train))
        cfg.optimizer = AdamW(state_bits=self.state_bits)
        return cfg


CASES = {
    "dense": Case(DENSE),
    "hybrid, LoRA": Case(HYBRID, lora=LoraConfig(dim=16)),
    "dense, QLoRA": Case(DENSE | {"vocab_size": 512}, 256, lora=QLORA),
    "dense, bf16, TP2": Case(DENSE, 2048, ranks=2, parallel={"tp": 2}, train=BF16),
    "dense, one short row, 8 bits": Case(DENSE, 64, train={"global_batch_size": 1}, state_bits=8),
}
MORE = {
    "hybrid": Case(HYBRID),
    "hybrid, bf16": Case(HYBRID, 2048, train=BF16),
    "hybrid, recompute": Case(HYBRID, 2048, train=AGAIN),
    "hybrid, selective": Case(HYBRID, train=SELECTIVE),
    "dense, LoRA, selective": Case(DENSE, lora=LoraConfig(dim=16), train=SELECTIVE),
    "hybrid, FSDP2": Case(HYBRID, ranks=2),
    "hybrid, EP2": Case(HYBRID, ranks=2, parallel={"ep": 2}, train=BF16),
    "hybrid, LoRA, TP2": Case(HYBRID, 2048, lora=LoraConfig(), ranks=2, parallel={"tp": 2}),
    "dense, long": Case(DENSE, 4096),
    "dense, bf16": Case(DENSE, 2048, train=BF16),
    "dense, recompute, bf16": Case(DENSE, 4096, train=BF16 | AGAIN),
    "dense, selective, bf16": Case(DENSE, 2048, train=BF16 | SELECTIVE),
    "experts, bf16": Case(MIXTURE, 2048, train=BF16),
    "dense, LoRA": Case(DENSE, 2048, lora=LoraConfig()),
    "dense, LoRA, bf16": Case(DENSE, lora=LoraConfig(), train=BF16),
    "dense, DoRA": Case(DENSE, 2048, lora=LoraConfig(use_dora=True)),
    "dense, DoRA, selective": Case(DENSE, 2048, lora=LoraConfig(use_dora=True), train=SELECTIVE),
    "hybrid, DoRA, bf16": Case(HYBRID, 2048, lora=LoraConfig(use_dora=True), train=BF16),
    "dense, PiSSA": Case(DENSE, 2048, lora=LoraConfig(init_lora_weights="pissa_niter_4")),
    "dense, LoRA and head": Case(DENSE, lora=LoraConfig(modules_to_save=["embed_tokens"])),
    "experts, LoRA and tables, FSDP2": Case(
        MIXTURE, lora=LoraConfig(modules_to_save=["embed_tokens", "lm_head"]), ranks=2
    ),
    "dense, LoRA and head, bf16": Case(DENSE, lora=LoraConfig(modules_to_save=["embed_tokens"]), train=BF16),
    "dense, recompute": Case(DENSE, 4096, train=AGAIN),
    "dense, one micro-batch": Case(DENSE, 2048, train={"global_batch_size": 1}),
    "dense, two rows at once": Case(DENSE, train={"global_batch_size": 4, "micro_batch_size": 2}),
    "dense, FSDP2, recompute, bf16": Case(DENSE, 2048, ranks=2, train=BF16 | AGAIN),
    "dense, CP2": Case(DENSE, 2048, ranks=2, parallel={"cp": 2}),
    "dense, PP2": Case(DENSE, ranks=2, parallel={"pp": 2}),
    "dense, PP2, FSDP2": Case(DENSE, ranks=4, parallel={"pp": 2}),
    "experts, untied": Case(MIXTURE, 2048),
    "experts, untied, 8 bits": Case(MIXTURE, 2048, state_bits=8),
    "dense, 8 bits": Case(DENSE, state_bits=8),
    "wide head, 8 bits": Case(
        DENSE | {"vocab_size": 16384, "tie_word_embeddings": False}, train={"global_batch_size": 1}, state_bits=8
    ),
    "wide head, bf16, 8 bits": Case(
        DENSE | {"vocab_size": 16384, "tie_word_embeddings": False}, train=BF16 | {"global_batch_size": 1}, state_bits=8
    ),
    "dense, frozen": Case(DENSE, train={"freeze": ["embed_tokens", "*.layers.0.*"]}),
    "hybrid, frozen, FSDP2": Case(HYBRID, ranks=2, train={"freeze": ["embed_tokens", "*.experts.*"]}),
    "dense, QLoRA, FSDP2": Case(DENSE, lora=QLORA, ranks=2),
    "hybrid, QLoRA, bf16": Case(HYBRID, lora=QLORA, train=BF16),
    "experts, QLoRA in int8": Case(MIXTURE, 512, lora=dataclasses.replace(QLORA, quantize_base="int8")),
    "dense, FSDP2, 8 bits": Case(DENSE, ranks=2, state_bits=8),
}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_within_fifteen_percent_of_the_measured_peak(name: str) -> None:
    cfg = (CASES | MORE)[name].config()
    architecture = cfg.model.architecture
    layout = run_layout(cfg, architecture)
    assert cfg.train.precision is not None
    estimated = estimate_memory(cfg, architecture, layout, cfg.train.precision).total
    measured = max(run_ranks(layout.world, training_peak, cfg))
    print(f"{name}: measured {measured / 2**20:.1f} MiB, estimated {estimated / measured - 1:+.1%}")
    assert estimated == pytest.approx(measured, rel=0.15)
