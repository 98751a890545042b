"""Model sizes used by the estimates, read from the fields of a config.json, in one form for all families."""

from dataclasses import dataclass
from typing import Any

from sft_hydra.planning.architecture import common_names


@dataclass(frozen=True, slots=True)
class Sizes:
    """Model sizes, in channels unless noted otherwise. Sizes that a family does not have are 0."""

    vocab: int
    hidden: int
    tied: bool  # lm_head and embedding share their weight
    blocks: tuple[tuple[str, ...], ...]  # mixers of each block: attention, mamba, mlp, moe
    heads: int
    head_dim: int
    kv_heads: int
    qk_norm: bool
    inner: int  # of feed-forward layers
    gated: bool  # feed-forward layers and experts have a gate
    experts: int
    chosen: int  # experts of one token
    expert_inner: int
    shared_inner: int
    latent: int  # input and output channels of experts
    mamba_heads: int
    mamba_inner: int
    groups: int
    state: int
    taps: int  # of the convolution
    chunk: int  # tokens of one step of the scan

    @property
    def q(self) -> int:
        """Channels of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Channels of all key heads (as many as of value heads)."""
        return self.kv_heads * self.head_dim

    @property
    def conv(self) -> int:
        """Channels of Mamba's convolution: x, B and C."""
        return self.mamba_inner + 2 * self.groups * self.state

    @property
    def mamba_in(self) -> int:
        """Outputs of Mamba's input projection: z, x, B, C and dt."""
        return self.mamba_inner + self.conv + self.mamba_heads

    def count(self, mixer: str) -> int:
        """Number of mixers of this kind in the model."""
        return sum(block.count(mixer) for block in self.blocks)


def sizes_of(arch: dict[str, Any]) -> Sizes:
    """Sizes from the fields of config.json; exact for our families, approximate for others."""
    arch = common_names(arch)
    hidden, heads = arch["hidden_size"], arch["num_attention_heads"]
    mamba_heads = arch.get("mamba_num_heads") or 0
    return Sizes(
        vocab=arch["vocab_size"],
        hidden=hidden,
        tied=bool(arch.get("tie_word_embeddings")),
        blocks=_blocks(arch),
        heads=heads,
        head_dim=arch.get("head_dim") or hidden // heads,
        kv_heads=arch.get("num_key_value_heads") or heads,
        qk_norm=str(arch.get("model_type", "")).startswith("qwen3"),
        inner=arch.get("intermediate_size") or 0,
        gated=arch.get("model_type") != "nemotron_h",
        experts=arch.get("n_routed_experts") or arch.get("num_experts") or 0,
        chosen=arch.get("num_experts_per_tok") or 0,
        expert_inner=arch.get("moe_intermediate_size") or 0,
        shared_inner=arch.get("moe_shared_expert_intermediate_size") or 0,
        latent=arch.get("moe_latent_size") or hidden,
        mamba_heads=mamba_heads,
        mamba_inner=mamba_heads * (arch.get("mamba_head_dim") or 0),
        groups=arch.get("n_groups") or 0,
        state=arch.get("ssm_state_size") or 0,
        taps=arch.get("conv_kernel") or 0,
        chunk=arch.get("chunk_size") or 0,
    )


def _blocks(arch: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    if arch.get("model_type") == "nemotron_h":
        kinds = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
        return tuple((kinds[kind],) for kind in arch["hybrid_override_pattern"])
    every, dense = arch.get("decoder_sparse_step") or 1, arch.get("mlp_only_layers") or []
    sparse = [
        bool(arch.get("num_experts")) and (layer + 1) % every == 0 and layer not in dense
        for layer in range(arch["num_hidden_layers"])
    ]
    return tuple(("attention", "moe" if is_sparse else "mlp") for is_sparse in sparse)
