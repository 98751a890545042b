"""Grouped matrix product: one per expert, over tokens sorted by expert."""

import torch
import torch.nn.functional as F

# CPU libraries use another kernel, with other rounding, for fewer rows than this: the number of tokens that one conversation
# routes to an expert would then change the last bits of another conversation.
MIN_ROWS = 4


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(N, out): each row of `x` (N, in) times the transposed matrix of its expert in `weight` (E, out, in).

    `counts` (E,) int64: number of consecutive rows of each expert, summing to N; an expert may have none.
    """
    if _fuses(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    rows = x.split(counts.tolist())
    return torch.cat([_product(part, matrix) for part, matrix in zip(rows, weight.unbind(0), strict=True)])


def _fuses(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether torch's grouped_mm supports these tensors: row sizes must be multiples of 16 bytes."""
    is_aligned = x.shape[1] % 8 == 0 and weight.shape[1] % 8 == 0
    return x.is_cuda and x.dtype == torch.bfloat16 and is_aligned and len(x) > 0


def _product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`x` (n, in) times the transposed `matrix` (out, in), with the same rounding for every n."""
    return F.linear(F.pad(x, (0, 0, 0, max(0, MIN_ROWS - len(x)))), matrix)[: len(x)]
