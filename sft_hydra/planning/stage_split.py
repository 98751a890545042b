"""Assignment of blocks to pipeline stages (torch-free)."""

from collections.abc import Sequence
from itertools import pairwise


def partition_layers(costs: Sequence[float], stages: int) -> list[range]:
    """Consecutive blocks for each stage, minimizing the cost of the most expensive stage (linear partition by dynamic
    programming). No stage is empty."""
    best: dict[tuple[int, int], tuple[float, int]] = {
        (0, 0): (0.0, 0)
    }  # (stages, blocks): (cost of the most expensive stage, start of the last stage)
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
    bounds = [len(costs)]
    for stage in range(stages, 0, -1):
        bounds.append(best[stage, bounds[-1]][1])
    bounds.reverse()
    return [range(start, end) for start, end in pairwise(bounds)]
