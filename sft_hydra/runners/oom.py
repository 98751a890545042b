"""A device without memory left, told to people: what the run needs by the estimate, and what would help by how much."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import OutOfMemoryError
from sft_hydra.planning.estimate import GIB, estimate_memory, savings
from sft_hydra.planning.topology import run_layout
from sft_hydra.schema.config import Precision, SftConfig

NO_MEMORY = "can't allocate memory"  # what torch says of a machine's own memory, in a plain RuntimeError


@contextmanager
def explain_oom(cfg: SftConfig, architecture: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Raises OutOfMemoryError for torch's own, on whatever step it happened."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in str(error):
            raise
        raise OutOfMemoryError(*_what_helps(cfg, architecture, device, str(error))) from error


def _what_helps(cfg: SftConfig, architecture: dict[str, Any], device: torch.device, said: str) -> list[str]:
    precision = Precision.bf16 if compute_dtype(cfg.train.precision, device) is torch.bfloat16 else Precision.fp32
    needed = estimate_memory(cfg, architecture, run_layout(cfg, architecture), precision).total / GIB
    helps = [
        f"{change} would save about {saved / GIB:.2f} GiB" for change, saved in savings(cfg, architecture, precision)
    ]
    reason = ". ".join(said.splitlines()[0].split(". ")[:3]).rstrip(".")  # what was asked for, what the device has
    reason = reason[reason.find("DefaultCPUAllocator") :] if NO_MEMORY in reason else reason
    return [
        f"oom: {reason}; by the estimate this run takes {needed:.2f} GiB a rank",
        *helps,
        "train.global_batch_size changes nothing here: it is accumulated; checkpoints stand, the same command goes on",
    ]
