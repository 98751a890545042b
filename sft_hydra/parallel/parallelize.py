"""Applies the parallel layout to a model, in this order:

1. split: mixer weights become DTensors over the tensor- or expert-parallel ranks (storage only; compute uses plain tensors)
2. torch.compile: each block by itself (compiled_blocks.py)
3. activation checkpointing: blocks recompute activations in the backward pass (activation_checkpointing.py); that of compiled
   blocks is part of 2
4. FSDP2 (ZeRO-3, Rajbhandari et al. 2020): parameters are sharded over the ranks that share their gradient and all-gathered
   block by block; gradients are reduce-scattered as sums

The model may be on the meta device; no weight values are needed.
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
from sft_hydra.parallel.compiled_blocks import compile_block
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.parallel.sharded_module import KeepFp32, ShardedModule


@dataclass(frozen=True, slots=True)
class Options:
    """Memory and precision settings, from `train.*`."""

    dtype: torch.dtype = torch.float32  # compute dtype of blocks; stored weights keep their dtype
    recompute: str = "none"  # none, selective, full
    compile: bool = False
    cpu_offload: bool = False


def parallelize(roots: Sequence[nn.Module], blocks: Sequence[nn.Module], mesh: Mesh, options: Options) -> None:
    """Parallelize in place the `blocks` and the `roots` that call them: the model, or its pipeline stages."""
    mixers = [
        module for block in blocks for module in block.modules() if isinstance(module, ShardedModule) and module.columns
    ]
    for mixer in mixers:
        mixer.join(mesh)
        _split(mixer, mesh)
    for block in blocks:
        (compile_block if options.compile else checkpoint_activations)(block, options.recompute)
    if mesh.dense_mesh is not None:
        _shard(roots, blocks, mesh, options)


def reshard(roots: Sequence[nn.Module]) -> None:
    """Free the all-gathered weights after forward passes without a backward pass."""
    for root in roots:
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _split(mixer: ShardedModule, mesh: Mesh) -> None:
    """Make every parameter of a mixer a DTensor over its tensor- or expert-parallel ranks."""
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
    """The mesh over which a mixer's weights are split; None if they are not split."""
    if mixer.over == "ep":
        return mesh.ep_mesh if mesh.ep.size > 1 else None
    return mesh.tp_mesh if mesh.tp.size > 1 else None


def _shard(roots: Iterable[nn.Module], blocks: Iterable[nn.Module], mesh: Mesh, options: Options) -> None:
    """FSDP2 units, inner ones first: fp32-only layers, layers split over tp or ep, blocks, roots.

    Between mixers all ranks of a pipeline stage hold different tokens, so gradients are summed over all of them, except
    over ranks that split the weight. Roots keep their gathered weights until the backward pass, which begins with them; so
    do blocks of a pipeline, which otherwise would all-gather again for every micro-batch.
    """
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    rounded = exact
    if options.dtype != torch.float32:
        rounded = MixedPrecisionPolicy(options.dtype, torch.float32, cast_forward_inputs=False)
    shared: dict[str, Any] = {}
    if options.cpu_offload:
        shared["offload_policy"] = CPUOffloadPolicy(
            pin_memory=mesh.dense_mesh is not None and mesh.dense_mesh.device_type == "cuda"
        )

    def unit(
        module: nn.Module,
        ranks: DeviceMesh | None,
        policy: MixedPrecisionPolicy = rounded,
        *,
        reshard: bool = mesh.pp.size == 1,
    ) -> None:
        sharded = fully_shard(module, mesh=ranks, mp_policy=policy, reshard_after_forward=reshard, **shared)
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
        visit(block, mesh.dense_mesh)
        unit(block, mesh.dense_mesh)
    for root in roots:
        unit(root, mesh.dense_mesh, reshard=False)
