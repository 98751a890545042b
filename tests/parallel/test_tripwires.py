"""Silent errors of the libraries that we steer around. A failure here says that a library has changed: then look again."""

import copy

import pytest
import torch
from support.packed import relative
from support.ranks import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def pipelined_gradients(schedule):
    """Gradients of four plain stages on two pipeline ranks with FSDP over two: (got, expected) of this rank."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    rank, share = mesh["pp"].get_local_rank(), mesh["dp"].get_local_rank()
    torch.manual_seed(0)
    stages = [nn.Sequential(Residual(), Residual()) for _ in range(4)]
    whole = nn.Sequential(*copy.deepcopy(stages))
    x, y = torch.randn(16, 16), torch.randn(16, 16)
    (whole(x) - y).square().sum().backward()
    numbers = [rank, rank + 2]
    for number in numbers:
        for block in stages[number]:
            fully_shard(block, mesh=mesh["dp"])
        fully_shard(stages[number], mesh=mesh["dp"])
    pipeline = [PipelineStage(stages[n], n, 4, torch.device("cpu"), group=mesh["pp"].get_group()) for n in numbers]
    run = schedule(pipeline, n_microbatches=8, loss_fn=lambda a, b: 2 * (a - b).square().sum(), scale_grads=False)
    own = slice(8 * share, 8 * share + 8)
    inputs = (x[own],) if rank == 0 else ()
    last = {"target": y[own], "losses": []} if rank == 1 else {}
    run.step(*inputs, **last)
    pairs = []
    for number in numbers:
        for got, expected in zip(stages[number].parameters(), whole[number].parameters(), strict=True):
            pairs.append((torch.zeros(()) if got.grad is None else got.grad.full_tensor(), expected.grad))
    return [relative(got, expected) for got, expected in pairs]


def test_zero_bubble_schedules_lose_gradients_under_fsdp():
    right = run_ranks(4, pipelined_gradients, ScheduleInterleaved1F1B)
    assert all(error < 1e-5 for errors in right for error in errors)
    wrong = run_ranks(4, pipelined_gradients, ScheduleInterleavedZeroBubble)
    assert any(error > 0.1 for errors in wrong for error in errors)


def clip_over_two_meshes():
    """What torch's own clipping says of gradients that lie on different meshes."""
    one = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    two = init_device_mesh("cpu", (1, 2), mesh_dim_names=("shard", "split"))
    parameters = [nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])) for mesh in (one, two["split"])]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    except RuntimeError as error:
        return str(error)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def test_torchs_clipping_does_not_take_mixed_meshes():
    for answer in run_ranks(2, clip_over_two_meshes):
        assert isinstance(answer, str) or answer != pytest.approx(32**0.5)


def hooks_that_fire():
    """How often hooks fire that were put on a parameter before and after fully_shard."""
    fired = {"before": 0, "after": 0}
    layer = nn.Linear(4, 4)

    def count(key):
        def hook(_):
            fired[key] += 1

        return hook

    layer.weight.register_post_accumulate_grad_hook(count("before"))
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    layer.weight.register_post_accumulate_grad_hook(count("after"))
    layer(torch.ones(2, 4)).sum().backward()
    return fired


def test_hooks_on_parameters_do_not_survive_sharding():
    for fired in run_ranks(2, hooks_that_fire):
        assert fired["before"] == 0


def left_gathered():
    """Whether a forward pass without a backward pass leaves the weights of an FSDP root gathered."""
    layer = nn.Linear(4, 4)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        layer(torch.ones(2, 4))
    return not isinstance(layer.weight, DTensor)


def test_fsdp_keeps_the_roots_weights_gathered_after_validation():
    assert run_ranks(2, left_gathered) == [True, True]
