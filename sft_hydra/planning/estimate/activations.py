"""Activation memory of one mixer: bytes saved for the backward pass, per token of a rank.

Counted from the layers (models/, kernels/): what autograd saves. A weight's gradient needs the input of its layer, so frozen
layers save less. Attention is FlashAttention, or torch's CPU kernel: both save inputs, output and a logsumexp per head, not
the scores. `Keeping.on_cpu` covers differences between CUDA and CPU.
"""

from dataclasses import dataclass

from sft_hydra.planning.estimate.sizes import Sizes

FP32 = 4


@dataclass(frozen=True, slots=True)
class Keeping:
    """Settings that determine how much is saved."""

    width: int  # bytes per element in the compute dtype
    full: bool  # full fine-tuning
    lora: int  # LoRA rank, 0 without LoRA; twice the rank where A and B start from the weight
    starts: bool  # A and B start from the weight
    dora: bool
    on_cpu: bool
    tp: int  # tensor-parallel size
    quantized: float | None = None  # bytes of a frozen weight of a linear layer; None: `width`


def kept_by_mixer(s: Sizes, mixer: str, how: Keeping) -> int:
    """Bytes per token saved by one mixer (`attention`, `mamba`, `mlp`, `moe`) with its norm and its input hidden states."""
    kept = {"attention": _attention, "mamba": _mamba, "mlp": _mlp, "moe": _moe}[mixer](s, how)
    return kept + (how.width * _outputs(s, mixer, how) if how.dora else 0)


def _outputs(s: Sizes, mixer: str, how: Keeping) -> int:
    """Outputs of a mixer's layers that DoRA adapts by default: each is kept before it is scaled."""
    out = s.hidden * how.tp
    if mixer == "attention":
        return s.q + 2 * s.kv + out
    if mixer == "mamba":
        return s.mamba_in
    inner = s.inner if mixer == "mlp" else s.shared_inner
    return inner * (2 if s.gated else 1) + out if inner else 0


def kept_under_selective(s: Sizes, mixer: str, how: Keeping) -> int:
    """Bytes per token saved under selective activation checkpointing (parallel/activation_checkpointing.py): the outputs of
    matrix products. A layer with an adapter has one more between the adapter's matrices, and with DoRA a second output."""
    inner, gates = s.inner * how.width, 2 if s.gated else 1
    out = how.width * s.hidden
    if mixer == "attention":
        products = how.width * (s.q + 2 * s.kv) + out * how.tp
        return products * (2 if how.dora else 1) + how.width * s.q + FP32 * s.heads + _adapters(4, how)
    if mixer == "mamba":
        scan = s.groups * s.chunk + 2 * s.mamba_inner + s.mamba_inner * s.state // s.chunk
        projection = how.width * s.mamba_in * (2 if how.dora else 1)
        return projection + FP32 * scan + out * how.tp + _adapters(1, how)
    if mixer == "mlp":
        return (inner * gates + out * how.tp) * (2 if how.dora else 1) + _adapters(gates + 1, how)
    routed = s.chosen * how.width * (s.expert_inner * gates + s.latent)
    projections = how.width * s.latent + out if s.latent != s.hidden else 0
    shared = (how.width * s.shared_inner + out) * (2 if how.dora else 1) if s.shared_inner else 0
    return FP32 * s.experts + routed + projections + shared


def norm(size: int, how: Keeping) -> int:
    """Bytes per token saved by a norm of `size`: its input; on a CPU in fp32, and the normalized values if trained."""
    return FP32 * size * (2 if how.full else 1) if how.on_cpu else how.width * size


def _attention(s: Sizes, how: Keeping) -> int:
    """norm + inputs of q, k, v + norms of q, k + q, k, v, output [and its copy on a CPU] + a logsumexp per head"""
    qk = norm(s.q + s.kv, how) if s.qk_norm else 0
    attention = how.width * (s.q * (3 if how.on_cpu else 2) + 2 * s.kv) + FP32 * s.heads
    return norm(s.hidden, how) + _input(s.hidden, how) + qk + attention + _adapters(4, how)


def _mlp(s: Sizes, how: Keeping) -> int:
    """norm + inputs + input of the activation, its product with the gate, input of the last layer"""
    layers = 2 if s.gated else 1
    inner = how.width * s.inner * 2 * layers
    return norm(s.hidden, how) + _input(s.hidden, how) + inner + _adapters(layers + 1, how)


def _moe(s: Sizes, how: Keeping) -> int:
    """norm + the router's fp32 input and scores + for each selected expert input, activation, output + the shared expert"""
    router = (FP32 * s.hidden if how.full and how.width < FP32 else 0) + 4 * FP32 * s.experts
    index = 8 * 4 * s.chosen
    inner = s.expert_inner * ((4 if s.gated else 2) if how.full else (3 if s.gated else 1))
    routed = s.chosen * how.width * (inner + s.latent + (s.latent if how.full else 0))
    projections = how.width * s.latent + _input(s.latent, how) if s.latent != s.hidden else 0
    shared = (how.width * 2 * s.shared_inner + _adapters(2, how)) if s.shared_inner else 0
    return norm(s.hidden, how) + how.width * s.hidden + router + index + routed + projections + shared


def _mamba(s: Sizes, how: Keeping) -> int:
    """norm + input + convolution + scan + gated norm + input of the last layer. Norm, input and last layer in the compute
    dtype, the rest in fp32:

    - z: in fp32 the full output of the input projection, of which z is a view; else an fp32 copy
    - convolution: input of its activation; for the weight gradient also the input of each tap
    - scan: x, x dt (in two memory orders), the state's contribution; decays and scores times decays (chunk per head); B, C
      (in two orders), scores (chunk per group), B times decays (state per head); a state per chunk
    - gated norm: y, silu(z), their product; the normalized values
    """
    full = 1 if how.full else 0
    z = s.mamba_in if how.width == FP32 else s.mamba_inner
    convolution = s.conv * (s.taps + 1 if how.full else 1)
    heads = s.mamba_heads * (2 * s.chunk + s.state + 2)
    groups = s.groups * (4 * s.state + s.chunk)
    scan = 4 * s.mamba_inner + heads + groups + s.mamba_inner * s.state // s.chunk
    gated = s.mamba_inner * (3 + full)
    last = how.width * s.mamba_inner * full
    fp32 = FP32 * (z + convolution + scan + gated)
    return norm(s.hidden, how) + _input(s.hidden, how) + fp32 + last + _adapters(1, how)


def _input(size: int, how: Keeping) -> int:
    """The input shared by a mixer's linear layers, for all tokens gathered over tensor-parallel ranks."""
    return how.width * size * how.tp


def _adapters(layers: int, how: Keeping) -> int:
    """Activations between the two matrices of each adapter."""
    return how.width * how.lora * layers
