"""Pipeline parallelism: which stages a rank has, and the schedule that runs them.

Schedules are torch's 1F1B (Narayanan et al. 2019) and, with several stages per rank, interleaved 1F1B (Narayanan et al.
2021). torch's zero-bubble schedules are not used: with FSDP they silently leave layers without gradients (a test detects
when that changes).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sft_hydra.parallel.mesh import Mesh


def stages_of_rank(mesh: Mesh, per_rank: int) -> list[int]:
    """Indices of this rank's stages, assigned round-robin: the pipeline passes over all ranks `per_rank` times."""
    return [mesh.pp.rank + turn * mesh.pp.size for turn in range(per_rank)]


def make_schedule(modules: Sequence[nn.Module], mesh: Mesh, device: torch.device, micro_batches: int) -> Any:
    """torch's schedule over this rank's stages (`modules`). The output of the last stage is the loss (1,)."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B  # slow to import

    numbers = stages_of_rank(mesh, len(modules))
    total = mesh.pp.size * len(modules)
    stages = [
        PipelineStage(module, number, total, device, group=mesh.pp.handle)
        for module, number in zip(modules, numbers, strict=True)
    ]
    if len(stages) == 1:
        return Schedule1F1B(stages[0], micro_batches, loss_fn=_loss, scale_grads=False)
    return ScheduleInterleaved1F1B(stages, micro_batches, loss_fn=_loss, scale_grads=False)


def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.sum()
