"""A model on several ranks: from the meta device to memory on each of them."""

import torch

from sft_hydra.engine.fp8 import check_fp8, use_fp8
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.models.decoder import DecoderModel, FamilyModel
from sft_hydra.models.pipeline_stages import Pipeline
from sft_hydra.parallel.mesh import make_mesh
from sft_hydra.parallel.parallelize import Options, parallelize
from sft_hydra.parallel.rendezvous import start_group_of_one
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.config import SftConfig


def materialize_on_mesh(model: DecoderModel, cfg: SftConfig, layout: Layout, device: torch.device) -> None:
    """Lay a model on the meta device out over the ranks and give every rank memory for its part; values come later."""
    train = cfg.train
    if train.fp8:
        check_fp8(device)
        use_fp8(model)
    if train.cpu_offload and device.type == "cuda" and layout.world == 1:
        start_group_of_one()  # FSDP is what moves weights between host and device
    heads = getattr(model.config, "num_attention_heads", 1)  # models without attention come through transformers
    mesh = make_mesh(layout, device, heads=heads // layout.tp)
    dtype = compute_dtype(cfg, device)
    model.mesh, model.rounds_to = mesh, None if dtype is torch.float32 else dtype
    options = Options(dtype, train.recompute.value, train.compile, train.cpu_offload)
    if layout.pp > 1:
        assert isinstance(model, FamilyModel)
        model.pipeline = Pipeline(model, layout.vp)
    parallelize(model.roots, model.blocks, mesh, options)
    for root in model.roots:
        root.to_empty(device="cpu" if train.cpu_offload else device)
    for module in model.modules():  # only parameters travel
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device=device))
    model.compute_buffers()
