"""How long an optimizer step would take under a layout: a cost model that ranks layouts, not a forecast.

Compute at a fixed share of an H100's peak; weights read from memory once a pass, which is what few tokens an expert cost;
starting the kernels of a layer; a pipeline's waiting; and what ranks send each other, by bytes over the link that carries
them: NVLink inside a node, the network between nodes. FSDP's traffic hides behind compute as far as it goes and slows it a
little, the others wait. Figures are of an H100 node (3.35 TB/s of memory, NVLink 450 GB/s, 400 Gbit/s of network a GPU), a
little below the label.
"""

from typing import Any

from sft_hydra.planning.estimate import PEAK_FLOPS, count_parameters, flops_per_token
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.config import Recompute, SftConfig

REACHED = 0.5  # of the peak, by matrix products of a size that fills the GPU
MEMORY, NVLINK, NETWORK = 3e12, 300e9, 35e9  # bytes a second and GPU
LATENCY = 30e-6  # seconds that a collective takes whatever it carries
LAUNCH = 300e-6  # seconds to start the kernels of a layer, forward and backward
SLOWED = 0.2  # share of FSDP's traffic that shows though it is hidden: it takes memory and processors from compute
BF16, FP32 = 2, 4  # bytes


def step_seconds(cfg: SftConfig, architecture: dict[str, Any], layout: Layout, rows: int) -> float:
    """Seconds of one optimizer step of `rows` packed rows."""
    params = count_parameters(architecture)
    again = cfg.train.recompute is Recompute.full  # the forward pass runs twice
    own = rows // layout.dp
    size = min(own, cfg.train.micro_batch_size)
    micro_batches = -(-own // size)
    tokens = cfg.seq_length * size  # of a micro-batch, over the ranks that share it
    layers = _layers(architecture)
    passes = 2 * BF16 + (FP32 if cfg.peft is None else 0)  # forward, backward, gradients: bytes of a weight that move
    held = (params.total - params.expert) / (layout.pp * layout.tp), params.expert / (layout.pp * layout.ep)
    compute = (
        _compute(cfg, architecture, layout, tokens, again) + passes * sum(held) / MEMORY + LAUNCH * layers / layout.pp
    )
    fsdp = _gather(passes * held[0], layout.shards // layout.tp, layout.shards, layout)
    fsdp += _gather(passes * held[1], layout.shards // layout.ep, layout.shards, layout)
    own_tokens = tokens / (layout.cp * layout.tp)
    waits = sum(wait(architecture, layout, own_tokens) for wait in (_tensor, _context, _experts))
    one = max(compute, fsdp) + SLOWED * min(compute, fsdp) + waits * (1.5 if again else 1.0)
    stages = layout.pp * layout.vp
    filled = (micro_batches * layout.vp + layout.pp - 1) / (micro_batches * layout.vp)
    head = architecture["vocab_size"] * architecture["hidden_size"] / params.active
    uneven = 1 + stages * max(1 / layers, head) / 2 if stages > 1 else 1.0  # by half of what cannot be divided
    return micro_batches * one * filled * uneven


def _compute(cfg: SftConfig, architecture: dict[str, Any], layout: Layout, tokens: int, again: bool) -> float:
    """Of one micro-batch on one rank; a forward pass is a third of a step, half of it where the base is frozen."""
    frozen = cfg.peft is not None
    flops = flops_per_token(architecture, cfg.seq_length, frozen_base=frozen) * (1 + again / (2 if frozen else 3))
    thinner = 1 + 0.03 * (layout.tp.bit_length() - 1)  # each halving of a matrix costs a little of what is reached
    return flops * tokens * thinner / (layout.cp * layout.tp * layout.pp * PEAK_FLOPS * REACHED)


def _tensor(architecture: dict[str, Any], layout: Layout, tokens: float) -> float:
    """Each mixer gathers its tokens and sums them back; the backward pass does both again, and gathers once more."""
    size = BF16 * tokens * layout.tp * architecture["hidden_size"]
    return 5 * _mixers(architecture) / layout.pp * _gather(size, layout.tp, layout.tp, layout)


def _context(architecture: dict[str, Any], layout: Layout, tokens: float) -> float:
    """Tokens meet in attention and Mamba: swapped for heads and back, in both passes; beyond the heads, keys and values of
    all are gathered."""
    hidden, heads = architecture["hidden_size"], architecture["num_attention_heads"]
    width = heads * (architecture.get("head_dim") or hidden // heads)
    size = BF16 * tokens * 4 * width
    gathered = max(1, layout.cp * layout.tp // heads)
    pattern = architecture.get("hybrid_override_pattern")
    meeting = len(pattern) - pattern.count("E") - pattern.count("-") if pattern else _layers(architecture)
    return 2 * meeting / layout.pp * _exchange(size * gathered, layout.cp, layout.cp * layout.tp, layout)


def _experts(architecture: dict[str, Any], layout: Layout, tokens: float) -> float:
    """Every chosen expert is sent the token and sends one back, in both passes."""
    pattern = architecture.get("hybrid_override_pattern")
    layers = pattern.count("E") if pattern else _layers(architecture)
    width = architecture.get("moe_latent_size") or architecture["hidden_size"]
    size = BF16 * tokens * (architecture.get("num_experts_per_tok") or 0) * width
    return 4 * layers / layout.pp * _exchange(size, layout.ep, layout.ep, layout)


def _gather(size: float, ranks: int, span: int, layout: Layout) -> float:
    """Seconds until `ranks` that lie within `span` neighbours all have `size` bytes. What comes from another node comes
    once, over the network links of all the ranks that share it there."""
    if ranks == 1:
        return 0.0
    sharing = max(1, ranks * layout.gpus_per_node // span)
    return LATENCY + size * (ranks - 1) / ranks / _link(span, layout, sharing)


def _exchange(size: float, ranks: int, span: int, layout: Layout) -> float:
    """Seconds until each of `ranks` has sent every other its share of `size` bytes, all different."""
    return 0.0 if ranks == 1 else LATENCY + size * (ranks - 1) / ranks / _link(span, layout, 1)


def _link(span: int, layout: Layout, sharing: int) -> float:
    return NVLINK if span <= layout.gpus_per_node else min(NVLINK, sharing * NETWORK)


def _layers(architecture: dict[str, Any]) -> int:
    return int(architecture.get("num_hidden_layers") or len(architecture.get("hybrid_override_pattern") or "-"))


def _mixers(architecture: dict[str, Any]) -> int:
    """Layers that gather tokens under tensor parallelism: a dense block has two."""
    pattern = architecture.get("hybrid_override_pattern")
    return len(pattern) - pattern.count("E") if pattern else 2 * _layers(architecture)
