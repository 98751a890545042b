"""What a run will need, from the architecture alone (no torch, no weights): parameters, memory per rank, FLOPs, time.

Formulas are written out in the docstrings; all sizes are bytes unless a name says otherwise.
"""

from dataclasses import dataclass, replace
from typing import Any

from sft_hydra.config.architecture import common_names
from sft_hydra.config.schema import LoraConfig, Precision, Recompute, SftConfig
from sft_hydra.config.world import ranks_per_node, run_layout
from sft_hydra.parallel.layout import Layout, layout_problems

GIB = 2**30
HEAD_CHUNK_TOKENS = 1024  # rows of logits that exist at one time (kernels/loss.py)
ASSUMED_MFU = 0.40
PEAK_FLOPS = 989e12  # H100/H200, bf16 dense


@dataclass(frozen=True, slots=True)
class Parameters:
    total: int
    active: int
    """Used by one token: routed experts count only as often as they are chosen."""
    expert: int
    """Part of `total` that sits in routed experts."""
    embedding: int
    """Input embedding (and the head if untied)."""
    lora_per_rank: int
    """Adapter parameters for each unit of `peft.dim` on the default targets."""


def count_parameters(arch: dict[str, Any]) -> Parameters:
    """Counts from the fields of config.json, dense and Nemotron-H; of other families about so many."""
    arch = common_names(arch)
    if arch.get("model_type") == "nemotron_h":
        return _count_nemotron_h(arch)
    return _count_dense(arch)


def _attention(arch: dict[str, Any]) -> tuple[int, int]:
    hidden, heads = arch["hidden_size"], arch["num_attention_heads"]
    head_dim = arch.get("head_dim") or hidden // heads
    kv_heads = arch.get("num_key_value_heads") or heads
    q, kv = heads * head_dim, kv_heads * head_dim
    return hidden * (2 * q + 2 * kv), (hidden + q) * 2 + (hidden + kv) * 2


def _count_dense(arch: dict[str, Any]) -> Parameters:
    hidden, layers, vocab = arch["hidden_size"], arch["num_hidden_layers"], arch["vocab_size"]
    attention, lora = _attention(arch)
    qk_norm = 2 * (arch.get("head_dim") or 0) if str(arch.get("model_type", "")).startswith("qwen3") else 0
    experts, chosen = arch.get("num_experts") or 0, arch.get("num_experts_per_tok") or 0
    if experts:
        ffn = arch["moe_intermediate_size"]
        one = 3 * hidden * ffn
        layer, routed, router = 0, experts * one, experts * hidden
    else:
        ffn = arch["intermediate_size"]
        one, chosen, router = 0, 0, 0
        layer, routed = 3 * hidden * ffn, 0
    lora += 3 * (hidden + ffn) * (experts or 1)
    embedding = vocab * hidden * (1 if arch.get("tie_word_embeddings") else 2)
    common = embedding + layers * (attention + layer + router + 2 * hidden + qk_norm) + hidden
    return Parameters(
        total=common + layers * routed,
        active=common + layers * chosen * one,
        expert=layers * routed,
        embedding=embedding,
        lora_per_rank=layers * lora,
    )


def _count_nemotron_h(arch: dict[str, Any]) -> Parameters:
    hidden, vocab, pattern = arch["hidden_size"], arch["vocab_size"], arch["hybrid_override_pattern"]
    attention, attention_lora = _attention(arch)
    inner = arch["mamba_num_heads"] * arch["mamba_head_dim"]
    conv = inner + 2 * arch["n_groups"] * arch["ssm_state_size"]
    in_width = inner + conv + arch["mamba_num_heads"]
    mamba = hidden * in_width + conv * (arch["conv_kernel"] + 1) + 3 * arch["mamba_num_heads"] + inner + inner * hidden
    latent = arch.get("moe_latent_size") or hidden
    experts = arch.get("n_routed_experts") or 0
    one = 2 * latent * (arch.get("moe_intermediate_size") or 0)
    shared = 2 * hidden * (arch.get("moe_shared_expert_intermediate_size") or 0)
    moe = experts * (hidden + 1) + shared + (2 * hidden * latent if latent != hidden else 0)
    mlp = 2 * hidden * (arch.get("intermediate_size") or 0)
    sizes = {"M": mamba, "*": attention, "E": moe, "-": mlp}
    lora = {
        "M": 2 * hidden + in_width + inner,
        "*": attention_lora,
        "E": 2 * (hidden + (arch.get("moe_shared_expert_intermediate_size") or 0)),
        "-": 2 * (hidden + (arch.get("intermediate_size") or 0)),
    }
    embedding = vocab * hidden * (1 if arch.get("tie_word_embeddings") else 2)
    moe_layers = pattern.count("E")
    common = embedding + hidden + sum(sizes[kind] + hidden for kind in pattern)
    return Parameters(
        total=common + moe_layers * experts * one,
        active=common + moe_layers * (arch.get("num_experts_per_tok") or 0) * one,
        expert=moe_layers * experts * one,
        embedding=embedding,
        lora_per_rank=sum(lora[kind] for kind in pattern),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def trainable_parameters(params: Parameters, peft: LoraConfig | None) -> int:
    return params.total if peft is None else params.lora_per_rank * peft.dim


def estimate_memory(cfg: SftConfig, arch: dict[str, Any], layout: Layout, precision: Precision) -> Memory:
    """Weights: fp32 masters, or bf16 where frozen. Gradients fp32, Adam 8 bytes, both of what is trained; all spread over
    the FSDP shards. In bf16 the largest layer is gathered once more. Activations: one micro-batch, about
    `layers x (8 hidden + 4 attention + 3 ffn)` numbers a token, or one input per layer under full recompute."""
    arch = common_names(arch)
    params = count_parameters(arch)
    trained = trainable_parameters(params, cfg.peft)
    width = 2 if precision is Precision.bf16 else 4
    frozen = params.total if cfg.peft is not None else 0
    shards = layout.shards
    layers = arch.get("num_hidden_layers") or len(arch.get("hybrid_override_pattern", "")) or 1
    gathered = width * (params.total - params.embedding) // layers if layout.world > 1 else 0
    tokens = cfg.seq_length * cfg.train.micro_batch_size // (layout.cp * layout.tp)
    hidden, heads = arch["hidden_size"], arch["num_attention_heads"]
    attention = heads * (arch.get("head_dim") or hidden // heads)
    ffn = arch.get("intermediate_size") or arch.get("moe_intermediate_size") or 0
    per_layer = hidden if cfg.train.recompute is Recompute.full else 8 * hidden + 4 * attention + 3 * ffn
    return Memory(
        weights=(frozen * width + trained * 4) // (shards * layout.pp) + gathered,
        gradients=4 * trained // (shards * layout.pp),
        optimizer=8 * trained // (shards * layout.pp),
        activations=width * tokens * (layers // layout.pp) * per_layer,
        logits=3 * 4 * min(tokens, HEAD_CHUNK_TOKENS) * arch["vocab_size"],
    )


def flops_per_token(arch: dict[str, Any], seq_length: int, *, frozen_base: bool = False) -> float:
    """Model FLOPs of one training token: 6 per active matrix parameter (4 if the base is frozen) plus causal attention
    over a whole row, 6 * layers * attention_width * seq_length. The embedding look-up is free; the head is not."""
    arch = common_names(arch)
    params = count_parameters(arch)
    lookup = arch["vocab_size"] * arch["hidden_size"]
    tied = bool(arch.get("tie_word_embeddings"))
    matrices = params.active - (0 if tied else lookup)
    heads, hidden = arch["num_attention_heads"], arch["hidden_size"]
    width = heads * (arch.get("head_dim") or hidden // heads)
    pattern = arch.get("hybrid_override_pattern")
    layers = pattern.count("*") if pattern else arch["num_hidden_layers"]
    return (4 if frozen_base else 6) * matrices + 6.0 * layers * width * seq_length


def savings(cfg: SftConfig, arch: dict[str, Any], precision: Precision) -> list[tuple[str, int]]:
    """(what to set, bytes that it saves a rank) of each change that would help, by the estimate; what helps most first."""
    train, gpus = cfg.train, 2 * ranks_per_node(cfg)
    changes: dict[str, SftConfig] = {
        f"cluster.gpus_per_node={gpus}": replace(cfg, cluster=replace(cfg.cluster, gpus_per_node=gpus)),
        f"seq_length={cfg.seq_length // 2}": replace(cfg, seq_length=cfg.seq_length // 2),
    }
    if train.micro_batch_size > 1:
        half = train.micro_batch_size // 2
        changes[f"train.micro_batch_size={half}"] = replace(cfg, train=replace(train, micro_batch_size=half))
    if train.recompute is not Recompute.full:
        changes["train.recompute=full"] = replace(cfg, train=replace(train, recompute=Recompute.full))
    if cfg.peft is None:
        changes["peft=lora"] = replace(cfg, peft=LoraConfig())
    now = estimate_memory(cfg, arch, run_layout(cfg, arch), precision).total
    found = []
    for text, changed in changes.items():
        layout = run_layout(changed, arch)
        if any(layout_problems(layout, arch, changed.seq_length)):
            continue
        saved = now - estimate_memory(changed, arch, layout, precision).total
        if saved > now / 100:
            found.append((text, saved))
    return sorted(found, key=lambda change: -change[1])
