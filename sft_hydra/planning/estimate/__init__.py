"""Estimates from the architecture alone (torch-free, without weights): parameters, memory per rank, FLOPs, time."""

from sft_hydra.planning.estimate.flops import ASSUMED_MFU, PEAK_FLOPS, flops_per_token
from sft_hydra.planning.estimate.memory import GIB, Memory, estimate_memory, savings
from sft_hydra.planning.estimate.parameters import Parameters, count_parameters, trainable_parameters

__all__ = [
    "ASSUMED_MFU",
    "GIB",
    "PEAK_FLOPS",
    "Memory",
    "Parameters",
    "count_parameters",
    "estimate_memory",
    "flops_per_token",
    "savings",
    "trainable_parameters",
]
