"""FLOPs of training, and the speed that times are estimated with."""

from typing import Any

from sft_hydra.planning.estimate.parameters import count_parameters
from sft_hydra.planning.estimate.sizes import sizes_of

ASSUMED_MFU = 0.40  # an assumption, said as such wherever a time is shown
PEAK_FLOPS = 989e12  # H100/H200, bf16 dense


def flops_per_token(arch: dict[str, Any], seq_length: int, *, frozen_base: bool = False) -> float:
    """Model FLOPs of one training token: 6 per active matrix parameter (4 if the base is frozen) plus causal attention
    over a whole row, 6 * layers * attention_width * seq_length. The embedding look-up is free; the head is not."""
    s, params = sizes_of(arch), count_parameters(arch)
    matrices = params.active - (0 if s.tied else s.vocab * s.hidden)
    return (4 if frozen_base else 6) * matrices + 6.0 * s.count("attention") * s.q * seq_length
