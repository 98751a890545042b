"""Explains an out-of-memory error: the estimated memory of the run, and which changes would save how much."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import OutOfMemoryError
from sft_hydra.planning.estimate import GIB, estimate_memory, savings
from sft_hydra.planning.topology import run_layout
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.train import Precision

NO_MEMORY = "can't allocate memory"  # torch's message for host memory, in a plain RuntimeError


@contextmanager
def explain_oom(cfg: SftConfig, architecture: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Context that turns torch's out-of-memory errors into OutOfMemoryError with an explanation."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in str(error):
            raise
        raise OutOfMemoryError(*_what_helps(cfg, architecture, device, str(error))) from error


def _what_helps(cfg: SftConfig, architecture: dict[str, Any], device: torch.device, message: str) -> list[str]:
    precision = Precision.bf16 if compute_dtype(cfg.train.precision, device) is torch.bfloat16 else Precision.fp32
    needed = estimate_memory(cfg, architecture, run_layout(cfg, architecture), precision).total / GIB
    helps = [
        f"{change} would save about {saved / GIB:.2f} GiB" for change, saved in savings(cfg, architecture, precision)
    ]
    reason = ". ".join(message.splitlines()[0].split(". ")[:3]).rstrip(".")  # requested and available memory
    reason = reason[reason.find("DefaultCPUAllocator") :] if NO_MEMORY in reason else reason
    return [
        f"oom: {reason}; this run is estimated to need {needed:.2f} GiB per rank",
        *helps,
        "train.global_batch_size does not matter (gradients are accumulated); rerun the command to resume from the last checkpoint",
    ]
