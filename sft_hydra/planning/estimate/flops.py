"""Model FLOPs of training, and the assumed speed for time estimates."""

from typing import Any

from sft_hydra.planning.estimate.parameters import count_parameters
from sft_hydra.planning.estimate.sizes import sizes_of

ASSUMED_MFU = 0.40  # an assumption; every time estimate shows it
PEAK_FLOPS = 989e12  # H100/H200, bf16 dense


def flops_per_token(arch: dict[str, Any], seq_length: int, *, frozen_base: bool = False) -> float:
    """Model FLOPs of one training token (convention of PaLM, Chowdhery et al. 2022): 6 per active matrix parameter (4 if the
    base is frozen) plus causal attention over the full sequence, 6 * layers * attention_width * seq_length. The embedding
    look-up counts 0; the lm_head counts."""
    s, params = sizes_of(arch), count_parameters(arch)
    matrices = params.active - (0 if s.tied else s.vocab * s.hidden)
    return (4 if frozen_base else 6) * matrices + 6.0 * s.count("attention") * s.q * seq_length
