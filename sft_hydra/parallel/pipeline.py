"""Pipeline parallelism: which stages a rank has, and the schedule that runs them.

Schedules are torch's 1F1B and, with several stages on a rank, interleaved 1F1B. Its zero-bubble schedules are left out:
together with FSDP they leave whole layers without gradient and say nothing (a test watches whether that is still so).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sft_hydra.parallel.mesh import Mesh


def stages_of_rank(mesh: Mesh, per_rank: int) -> list[int]:
    """Numbers of this rank's stages: the pipeline goes round all ranks `per_rank` times."""
    return [mesh.pp.rank + turn * mesh.pp.size for turn in range(per_rank)]


def make_schedule(modules: Sequence[nn.Module], mesh: Mesh, device: torch.device, micro_batches: int) -> Any:
    """torch's schedule over this rank's stages. What the last stage puts out is the loss."""
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
