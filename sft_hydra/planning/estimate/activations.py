"""What one mixer keeps from the forward to the backward pass, in bytes for each token of a rank.

Counted from the layers (models/, kernels/): a tensor is kept where autograd needs it. A weight's gradient needs the input of
its layer, so what trains nothing keeps less. Attention is flash attention, or torch's own on a CPU: both keep inputs, output
and a sum per head, never scores. Where CUDA and CPU differ, `Keeping.on_cpu` says which.
"""

from dataclasses import dataclass

from sft_hydra.planning.estimate.sizes import Sizes

FP32 = 4


@dataclass(frozen=True, slots=True)
class Keeping:
    """What decides how much is kept."""

    width: int  # bytes of a number in compute
    full: bool  # all weights are trained
    lora: int  # rank of adapters, 0 without
    on_cpu: bool
    tp: int  # ranks whose tokens a mixer gathers


def kept_by_mixer(s: Sizes, mixer: str, how: Keeping) -> int:
    """Of one mixer with its norm, and the hidden states that come into it."""
    return {"attention": _attention, "mamba": _mamba, "mlp": _mlp, "moe": _moe}[mixer](s, how)


def kept_under_selective(s: Sizes, mixer: str, how: Keeping) -> int:
    """Of one mixer whose block is computed again but for its products (parallel/activation_checkpointing.py): their outputs. An adapted
    layer has two, and one between its matrices."""
    inner, gates = s.inner * how.width, 2 if s.gated else 1
    out = how.width * s.hidden
    if mixer == "attention":
        products = how.width * (s.q + 2 * s.kv) + out * how.tp
        return products * (2 if how.lora else 1) + how.width * s.q + FP32 * s.heads + _adapters(4, how)
    if mixer == "mamba":
        scan = s.groups * s.chunk + 2 * s.mamba_inner + s.mamba_inner * s.state // s.chunk
        projection = how.width * s.mamba_in * (2 if how.lora else 1)
        return projection + FP32 * scan + out * how.tp + _adapters(1, how)
    if mixer == "mlp":
        return (inner * gates + out * how.tp) * (2 if how.lora else 1) + _adapters(gates + 1, how)
    routed = s.chosen * how.width * (s.expert_inner * gates + s.latent)
    around = how.width * s.latent + out if s.latent != s.hidden else 0
    shared = (how.width * s.shared_inner + out) * (2 if how.lora else 1) if s.shared_inner else 0
    return FP32 * s.experts + routed + around + shared


def norm(size: int, how: Keeping) -> int:
    """Its input. On a CPU an fp32 copy of it, or itself, and what the weight is multiplied with, if that is trained."""
    return FP32 * size * (2 if how.full else 1) if how.on_cpu else how.width * size


def _attention(s: Sizes, how: Keeping) -> int:
    """norm + inputs of q, k, v + norms of q, k + q, k, v, output [and its copy on a CPU] + a sum for each head"""
    qk = norm(s.q + s.kv, how) if s.qk_norm else 0
    attention = how.width * (s.q * (3 if how.on_cpu else 2) + 2 * s.kv) + FP32 * s.heads
    return norm(s.hidden, how) + _input(s.hidden, how) + qk + attention + _adapters(4, how)


def _mlp(s: Sizes, how: Keeping) -> int:
    """norm + inputs + what the activation needs, its product with the gate, the input of the last layer"""
    layers = 2 if s.gated else 1
    inner = how.width * s.inner * 2 * layers
    return norm(s.hidden, how) + _input(s.hidden, how) + inner + _adapters(layers + 1, how)


def _moe(s: Sizes, how: Keeping) -> int:
    """norm + the router's fp32 input and scores + of each chosen expert: input, activation, output; + the shared expert"""
    router = (FP32 * s.hidden if how.full and how.width < FP32 else 0) + 4 * FP32 * s.experts
    index = 8 * 4 * s.chosen
    inner = s.expert_inner * ((4 if s.gated else 2) if how.full else (3 if s.gated else 1))
    routed = s.chosen * how.width * (inner + s.latent + (s.latent if how.full else 0))
    around = how.width * s.latent + _input(s.latent, how) if s.latent != s.hidden else 0
    shared = (how.width * 2 * s.shared_inner + _adapters(2, how)) if s.shared_inner else 0
    return norm(s.hidden, how) + how.width * s.hidden + router + index + routed + around + shared


def _mamba(s: Sizes, how: Keeping) -> int:
    """norm + input + convolution + scan + gated norm + input of the last layer; all but these in fp32:

    - z: in fp32 the whole product of the input projection, of which it is a part; else an fp32 copy
    - convolution: what goes into its activation; for the weights' gradient also each tap's input
    - scan: x, x dt (in two orders), what the state adds; decays and scores times decays (chunk for each head); B, C (in two
      orders), scores (chunk for each group), B times decays (state for each head); a state for each chunk
    - gated norm: y, silu(z), their product; what the weight is multiplied with
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
    """The input that a mixer's linear layers share, of all tokens that are gathered for them."""
    return how.width * size * how.tp


def _adapters(layers: int, how: Keeping) -> int:
    """Between the two matrices of each adapter."""
    return how.width * how.lora * layers
