"""Pipeline parallelism: which blocks go to which stage, and the schedule that runs them.

Schedules are torch's 1F1B and, with several stages on a rank, interleaved 1F1B. Its zero-bubble schedules are left out:
together with FSDP they leave whole layers without gradient and say nothing (a test watches whether that is still so).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from sft_hydra.parallel.mesh import Mesh


def balanced(costs: Sequence[float], stages: int) -> list[range]:
    """Consecutive blocks for each stage, so that the dearest stage is as cheap as can be. No stage is empty."""
    best: dict[tuple[int, int], tuple[float, int]] = {
        (0, 0): (0.0, 0)
    }  # (stages, blocks): dearest stage, where it begins
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    for stage in range(1, stages + 1):
        for end in range(stage, len(costs) - (stages - stage) + 1):
            starts = range(stage - 1, end)
            best[stage, end] = min(
                (max(best[stage - 1, start][0], sums[end] - sums[start]), start)
                for start in starts
                if (stage - 1, start) in best
            )
    borders = [len(costs)]
    for stage in range(stages, 0, -1):
        borders.append(best[stage, borders[-1]][1])
    borders.reverse()
    return [range(start, end) for start, end in pairwise(borders)]


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
