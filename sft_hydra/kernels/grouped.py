"""One matrix product per expert over tokens that lie sorted by expert."""

import torch
import torch.nn.functional as F

# A CPU's libraries multiply fewer rows than this by other code, which rounds otherwise: how many tokens one conversation
# sends to an expert would then show in the last bits of another conversation's.
FEWEST = 4


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(N, out): rows of `x` (N, in) times the transposed matrix of their expert in `weight` (E, out, in).

    `counts` (E,) says how many rows each expert has, in order; they sum to N. Experts without rows are fine.
    """
    if _fuses(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    rows = x.split(counts.tolist())
    return torch.cat([_product(part, matrix) for part, matrix in zip(rows, weight.unbind(0), strict=True)])


def _fuses(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether torch's kernel takes them: it wants rows of a multiple of 16 bytes."""
    whole = x.shape[1] % 8 == 0 and weight.shape[1] % 8 == 0
    return x.is_cuda and x.dtype == torch.bfloat16 and whole and len(x) > 0


def _product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`x` (n, in) times the transposed matrix, rounded the same for every n."""
    return F.linear(F.pad(x, (0, 0, 0, max(0, FEWEST - len(x)))), matrix)[: len(x)]
