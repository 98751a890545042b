"""Differentiable collectives, and reductions of metrics. In a group of one rank each is the identity.

Between mixers every rank of dp x cp x tp holds different tokens (sequence parallelism); a mixer all-gathers or exchanges
tokens on entry and scatters them back on exit. The backward pass of each collective is its transpose (all-gather and
reduce-scatter, all-to-all and all-to-all), so gradients are summed and never averaged. Exchanging tokens for heads is
DeepSpeed-Ulysses (Jacobs et al. 2023).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sft_hydra.parallel.mesh import Group, Mesh

LONG_TASK_TIMEOUT = timedelta(days=1)

if hasattr(dist, "all_gather_single"):  # torch 2.13 renamed them
    all_gather, reduce_scatter = dist.all_gather_single, dist.reduce_scatter_single
else:
    all_gather, reduce_scatter = dist.all_gather_into_tensor, dist.reduce_scatter_tensor


def gather_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """All-gather: the local (t, ...) of each rank -> (size * t, ...) on every rank."""
    return x if group.size == 1 else _Gather.apply(x, group.handle)


def sum_to_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Reduce-scatter: the sum over ranks of (size * t, ...), of which every rank keeps its local (t, ...)."""
    return x if group.size == 1 else _Scatter.apply(x, group.handle)


def tokens_to_heads(x: torch.Tensor, group: Group) -> torch.Tensor:
    """All-to-all: (t, H, d), local tokens and all heads -> (size * t, H / size, d), all tokens and local heads."""
    if group.size == 1:
        return x
    x = x.unflatten(1, (group.size, -1)).movedim(1, 0).flatten(0, 1)
    return _Exchange.apply(x, None, None, group.handle)


def heads_to_tokens(x: torch.Tensor, group: Group) -> torch.Tensor:
    """The inverse of `tokens_to_heads`: (size * t, H / size, d) -> (t, H, d)."""
    if group.size == 1:
        return x
    x = _Exchange.apply(x, None, None, group.handle)
    return x.unflatten(0, (group.size, -1)).movedim(0, 1).flatten(1, 2)


def exchange_rows(x: torch.Tensor, send: list[int], receive: list[int], group: Group) -> torch.Tensor:
    """All-to-all of uneven parts: the first `send[0]` rows of x (N, ...) go to rank 0, the next `send[1]` to rank 1, ...

    Returns (sum of `receive`, ...), the rows received, in order of rank.
    """
    return x if group.size == 1 else _Exchange.apply(x, send, receive, group.handle)


def exchange_counts(counts: torch.Tensor, group: Group) -> torch.Tensor:
    """All-to-all of even parts of `counts` (N,); returns (N,), the parts received, in order of rank. No gradient."""
    return counts if group.size == 1 else _all_to_all(counts, None, None, group.handle)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _reduce_scatter(grad, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_gather(grad, ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, send: list[int] | None, receive: list[int] | None, group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _all_to_all(x, send, receive, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _all_to_all(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def _all_gather(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    out = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    all_gather(out, x.contiguous(), group=group)
    return out


def _reduce_scatter(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    out = x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    reduce_scatter(out, x.contiguous(), group=group)
    return out


def _all_to_all(
    x: torch.Tensor, send: list[int] | None, receive: list[int] | None, group: dist.ProcessGroup
) -> torch.Tensor:
    rows = x.shape[0] if receive is None else sum(receive)
    out = x.new_empty(rows, *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


def sum_over_ranks(values: list[float], mesh: Mesh) -> list[float]:
    """Element-wise sum of `values` over all ranks, on every rank, in fp64 on the CPU."""
    return _reduced(values, mesh, dist.ReduceOp.SUM)


def max_over_ranks(value: float, mesh: Mesh) -> float:
    """Maximum of `value` over all ranks, on every rank."""
    return _reduced([value], mesh, dist.ReduceOp.MAX)[0]


def _reduced(values: list[float], mesh: Mesh, op: dist.ReduceOp.RedOpType) -> list[float]:
    if mesh.layout.world == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, op)
    return tensor.tolist()


def all_gather_objects(value: Any, mesh: Mesh) -> list[Any]:
    """The `value` of each rank, in order of rank. For small objects and rare calls."""
    if mesh.layout.world == 1:
        return [value]
    values: list[Any] = [None] * mesh.layout.world
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank has reached this call, on the CPU."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


class ObjectExchange:
    """Objects between the first rank and the others, on the CPU. Each may take as long as it needs before it calls."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def broadcast(self, value: Any) -> Any:
        """The first rank's `value`, on every rank."""
        values = [value]
        dist.broadcast_object_list(values, 0, group=self._group, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """On the first rank the `value` of each rank, in order of rank; on the others an empty list."""
        first = dist.get_rank() == 0
        values: list[Any] = [None] * self._group.size() if first else []
        dist.gather_object(value, values if first else None, 0, group=self._group)
        return values


@contextmanager
def object_exchange() -> Iterator[ObjectExchange]:
    """An exchange of all ranks in the body, with a collective timeout of a day."""
    group = dist.new_group(backend="gloo", timeout=LONG_TASK_TIMEOUT)
    try:
        yield ObjectExchange(group)
    finally:
        dist.destroy_process_group(group)


@contextmanager
def rank0_first() -> Iterator[None]:
    """Rank 0 runs the body first, then all other ranks, which can use its results."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()
