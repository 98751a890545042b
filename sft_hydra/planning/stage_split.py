"""Where a pipeline is cut: which blocks go to which stage, in pure numbers (no torch)."""

from collections.abc import Sequence
from itertools import pairwise


def partition_layers(costs: Sequence[float], stages: int) -> list[range]:
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
