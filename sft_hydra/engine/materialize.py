"""Materializes a sharded model: from the meta device to memory on every rank."""

import torch

from sft_hydra.engine.fp8 import check_fp8, use_fp8
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.models.decoder import DecoderModel, FamilyModel
from sft_hydra.models.pipeline_stages import Pipeline
from sft_hydra.parallel.mesh import make_mesh
from sft_hydra.parallel.parallelize import Options, parallelize
from sft_hydra.parallel.rendezvous import start_group_of_one
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.train import Recompute, TrainConfig


def materialize_on_mesh(model: DecoderModel, train: TrainConfig, layout: Layout, device: torch.device) -> None:
    """Shard a model that is on the meta device over the ranks of `layout` and allocate the local shards, uninitialized.

    Sets `model.mesh`, `model.rounds_to`, `model.keeps_weight_copies` and `model.pipeline`. ConfigError if `train.fp8` is not supported here.
    """
    if train.fp8:
        check_fp8(device)
        use_fp8(model)
    if train.cpu_offload and device.type == "cuda" and layout.world == 1:
        start_group_of_one()  # FSDP moves weights between host and device
    heads = getattr(model.config, "num_attention_heads", 1)  # models without attention come through transformers
    mesh = make_mesh(layout, device, heads=heads // layout.tp)
    dtype = compute_dtype(train.precision, device)
    model.mesh, model.rounds_to = mesh, None if dtype is torch.float32 else dtype
    recomputes, is_alone = train.recompute is not Recompute.none, layout.world == 1 and not train.cpu_offload
    model.keeps_weight_copies = is_alone and not (recomputes or train.compile or train.fp8)
    options = Options(dtype, train.recompute.value, train.compile, train.cpu_offload)
    if layout.pp > 1:
        assert isinstance(model, FamilyModel)
        model.pipeline = Pipeline(model, layout.vp)
    parallelize(model.roots, model.blocks, mesh, options)
    for root in model.roots:
        root.to_empty(device="cpu" if train.cpu_offload else device)
    for module in model.modules():  # cpu_offload moves parameters only; buffers stay on the device
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device=device))
    model.compute_buffers()
