"""Cost model of an optimizer step under a layout. It ranks layouts; it does not predict times.

Terms: compute at a fixed fraction of an H100's peak; reading weights from memory once per pass, which dominates with few
tokens per expert; kernel launches per layer; the pipeline bubble; and communication volume over NVLink within a node and the
network between nodes. FSDP communication overlaps with compute and slows it slightly; the other collectives do not overlap.
Constants are for an H100 node (3.35 TB/s memory, 450 GB/s NVLink, 400 Gbit/s network per GPU), slightly below nominal.
"""

from typing import Any

from sft_hydra.planning.estimate import PEAK_FLOPS, count_parameters, flops_per_token
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.train import Recompute

REACHED = 0.5  # fraction of the peak reached by matrix products that fill the GPU
MEMORY, NVLINK, NETWORK = 3e12, 300e9, 35e9  # bytes per second and GPU
LATENCY = 30e-6  # seconds per collective, independent of its size
LAUNCH = 300e-6  # seconds to launch the kernels of a layer, forward and backward
SLOWED = 0.2  # fraction of overlapped FSDP time that still adds to the step: it uses memory bandwidth and SMs
BF16, FP32 = 2, 4  # bytes


def step_seconds(cfg: SftConfig, architecture: dict[str, Any], layout: Layout, rows: int) -> float:
    """Seconds of one optimizer step of `rows` packed sequences (global batch)."""
    params = count_parameters(architecture)
    again = cfg.train.recompute is Recompute.full  # the forward pass runs twice
    local_rows = rows // layout.dp
    size = min(local_rows, cfg.train.micro_batch_size)
    micro_batches = -(-local_rows // size)
    tokens = cfg.seq_length * size  # of a micro-batch, over the ranks that share it
    layers = _layers(architecture)
    passes = 2 * BF16 + (FP32 if cfg.peft is None else 0)  # bytes moved per weight: forward, backward, gradient
    local = (params.total - params.expert) / (layout.pp * layout.tp), params.expert / (layout.pp * layout.ep)
    compute = (
        _compute(cfg, architecture, layout, tokens, again) + passes * sum(local) / MEMORY + LAUNCH * layers / layout.pp
    )
    fsdp = _gather(passes * local[0], layout.shards // layout.tp, layout.shards, layout)
    fsdp += _gather(passes * local[1], layout.shards // layout.ep, layout.shards, layout)
    local_tokens = tokens / (layout.cp * layout.tp)
    exposed = sum(cost(architecture, layout, local_tokens) for cost in (_tensor, _context, _experts))
    one = max(compute, fsdp) + SLOWED * min(compute, fsdp) + exposed * (1.5 if again else 1.0)
    stages = layout.pp * layout.vp
    bubble = (micro_batches * layout.vp + layout.pp - 1) / (micro_batches * layout.vp)
    head = architecture["vocab_size"] * architecture["hidden_size"] / params.active
    uneven = (
        1 + stages * max(1 / layers, head) / 2 if stages > 1 else 1.0
    )  # half of the largest unit that cannot be divided
    return micro_batches * one * bubble * uneven


def _compute(cfg: SftConfig, architecture: dict[str, Any], layout: Layout, tokens: int, again: bool) -> float:
    """Compute seconds of one micro-batch on one rank; recomputing the forward pass adds a third, half if the base is frozen."""
    frozen = cfg.peft is not None
    flops = flops_per_token(architecture, cfg.seq_length, frozen_base=frozen) * (1 + again / (2 if frozen else 3))
    thinner = 1 + 0.03 * (layout.tp.bit_length() - 1)  # each halving of a matrix lowers the reached fraction slightly
    return flops * tokens * thinner / (layout.cp * layout.tp * layout.pp * PEAK_FLOPS * REACHED)


def _tensor(architecture: dict[str, Any], layout: Layout, tokens: float) -> float:
    """Tensor parallelism: all-gather and reduce-scatter per mixer, both again in the backward pass plus one all-gather."""
    size = BF16 * tokens * layout.tp * architecture["hidden_size"]
    return 5 * _mixers(architecture) / layout.pp * _gather(size, layout.tp, layout.tp, layout)


def _context(architecture: dict[str, Any], layout: Layout, tokens: float) -> float:
    """Context parallelism in attention and Mamba: all-to-all of tokens and heads and back, in both passes; with more ranks
    than heads, keys and values are all-gathered."""
    hidden, heads = architecture["hidden_size"], architecture["num_attention_heads"]
    width = heads * (architecture.get("head_dim") or hidden // heads)
    size = BF16 * tokens * 4 * width
    gathered = max(1, layout.cp * layout.tp // heads)
    pattern = architecture.get("hybrid_override_pattern")
    layers = len(pattern) - pattern.count("E") - pattern.count("-") if pattern else _layers(architecture)
    return 2 * layers / layout.pp * _exchange(size * gathered, layout.cp, layout.cp * layout.tp, layout)


def _experts(architecture: dict[str, Any], layout: Layout, tokens: float) -> float:
    """Expert parallelism: all-to-all dispatch and combine of each token for each of its experts, in both passes."""
    pattern = architecture.get("hybrid_override_pattern")
    layers = pattern.count("E") if pattern else _layers(architecture)
    width = architecture.get("moe_latent_size") or architecture["hidden_size"]
    size = BF16 * tokens * (architecture.get("num_experts_per_tok") or 0) * width
    return 4 * layers / layout.pp * _exchange(size, layout.ep, layout.ep, layout)


def _gather(size: float, ranks: int, span: int, layout: Layout) -> float:
    """Seconds of an all-gather to `size` bytes over `ranks` ranks that span `span` consecutive ranks. Data from another node
    is transferred once, over the network links of all ranks of the group on that node."""
    if ranks == 1:
        return 0.0
    sharing = max(1, ranks * layout.gpus_per_node // span)
    return LATENCY + size * (ranks - 1) / ranks / _link(span, layout, sharing)


def _exchange(size: float, ranks: int, span: int, layout: Layout) -> float:
    """Seconds of an all-to-all of `size` bytes per rank over `ranks` ranks."""
    return 0.0 if ranks == 1 else LATENCY + size * (ranks - 1) / ranks / _link(span, layout, 1)


def _link(span: int, layout: Layout, sharing: int) -> float:
    return NVLINK if span <= layout.gpus_per_node else min(NVLINK, sharing * NETWORK)


def _layers(architecture: dict[str, Any]) -> int:
    return int(architecture.get("num_hidden_layers") or len(architecture.get("hybrid_override_pattern") or "-"))


def _mixers(architecture: dict[str, Any]) -> int:
    """Number of mixers that all-gather tokens under tensor parallelism: a dense block has two."""
    pattern = architecture.get("hybrid_override_pattern")
    return len(pattern) - pattern.count("E") if pattern else 2 * _layers(architecture)
