"""Lays a model out over the ranks. Owns the order, which is the order of `parallelize`:

1. split: weights of mixers become DTensors over the tensor or expert ranks (storage only; layers compute with plain tensors)
2. recompute: blocks forget activations and compute them again in the backward pass (recompute.py)
3. compile: each block by itself
4. shard: every parameter is spread over the ranks that share its gradient, gathered block by block; gradients are summed

The model may still be on the meta device; nothing here needs a weight.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from sft_hydra.parallel.activation_checkpointing import checkpoint_activations
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.parallel.sharded_module import KeepFp32, ShardedModule


@dataclass(frozen=True, slots=True)
class Options:
    """What `train.*` says about memory and precision."""

    dtype: torch.dtype = torch.float32  # that blocks compute in; stored weights keep theirs
    recompute: str = "none"  # none, selective, full
    compile: bool = False
    cpu_offload: bool = False


def parallelize(roots: Sequence[nn.Module], blocks: Sequence[nn.Module], mesh: Mesh, options: Options) -> None:
    """Lay out, in place, the blocks and the `roots` that call them: the model itself, or its pipeline stages."""
    mixers = [
        module for block in blocks for module in block.modules() if isinstance(module, ShardedModule) and module.columns
    ]
    for mixer in mixers:
        mixer.join(mesh)
        _split(mixer, mesh)
    for block in blocks:
        checkpoint_activations(block, options.recompute)
    if options.compile:
        for block in blocks:
            _compile(block)
    if mesh.whole is not None:
        _shard(roots, blocks, mesh, options)


def reshard(roots: Sequence[nn.Module]) -> None:
    """After forward passes that no backward pass follows: give up the weights that were gathered for it."""
    for root in roots:
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _compile(block: nn.Module) -> None:
    """Rows differ in length and in documents: what varies becomes symbolic when it is seen to vary."""
    for module in block.modules():
        if isinstance(module, ShardedModule):
            for name in module.opaque:
                setattr(module, name, torch.compiler.disable(getattr(module, name)))
    block.compile()


def _split(mixer: ShardedModule, mesh: Mesh) -> None:
    """Make every parameter of a mixer a DTensor over the ranks that share the mixer."""
    shared = _split_mesh(mixer, mesh)
    if shared is None:
        return
    ranks = shared["split"]
    for name, parameter in list(mixer.named_parameters()):
        dim = mixer.split_dim(name)
        place = Replicate() if dim is None else Shard(dim)
        tensor = distribute_tensor(parameter.data, ranks, [place], src_data_rank=None)
        owner, _, leaf = name.rpartition(".")
        mixer.get_submodule(owner).register_parameter(leaf, nn.Parameter(tensor, parameter.requires_grad))


def _split_mesh(mixer: ShardedModule, mesh: Mesh) -> DeviceMesh | None:
    """The mesh that a mixer's weights are split over; None if they are not."""
    if mixer.over == "ep":
        return mesh.expert if mesh.ep.size > 1 else None
    return mesh.tensor if mesh.tp.size > 1 else None


def _shard(roots: Iterable[nn.Module], blocks: Iterable[nn.Module], mesh: Mesh, options: Options) -> None:
    """FSDP2 units, inner ones first: what is never rounded, what is split over its own ranks, blocks, roots.

    Between mixers all ranks of a pipeline stage hold different tokens, so gradients are summed over all of them, except
    over those that split a weight. Roots keep their weights until the backward pass, which begins with them; so do the
    blocks of a pipeline, which otherwise would gather them anew for every micro-batch.
    """
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    rounded = exact
    if options.dtype != torch.float32:
        rounded = MixedPrecisionPolicy(options.dtype, torch.float32, cast_forward_inputs=False)
    shared: dict[str, Any] = {"reshard_after_forward": mesh.pp.size == 1}
    if options.cpu_offload:
        shared["offload_policy"] = CPUOffloadPolicy(
            pin_memory=mesh.whole is not None and mesh.whole.device_type == "cuda"
        )

    def unit(module: nn.Module, ranks: DeviceMesh | None, policy: MixedPrecisionPolicy = rounded) -> None:
        sharded = fully_shard(module, mesh=ranks, mp_policy=policy, **shared)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)

    def visit(module: nn.Module, ranks: DeviceMesh | None) -> None:
        split = _split_mesh(module, mesh) if isinstance(module, ShardedModule) and module.columns else None
        if split is not None:
            ranks = split[split.mesh_dim_names[:-1]]
        for child in module.children():
            visit(child, ranks)
        if isinstance(module, KeepFp32) and options.dtype != torch.float32:
            unit(module, ranks, exact)
        elif split is not None:
            unit(module, ranks)

    for block in blocks:
        visit(block, mesh.whole)
        unit(block, mesh.whole)
    for root in roots:
        unit(root, mesh.whole)
