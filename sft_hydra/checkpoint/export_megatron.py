"""A trained model as a Megatron checkpoint: `export_megatron`.

    <folder>/latest_checkpointed_iteration.txt
    <folder>/iter_<step>/     .metadata, __0_<n>.distcp, common.pt, metadata.json; config.json and the tokenizer beside them

Megatron-Core reads it by its sharded state dict. Megatron-Bridge's own run_config.yaml is not written: it holds a provider
class of the installed version, which only that knows.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.checkpoint.hf_export import ExportReport
from sft_hydra.checkpoint.load_hf_weights import carried_names, local_folder
from sft_hydra.checkpoint.megatron import write_megatron
from sft_hydra.checkpoint.torch_dist import MADE_BY
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import CheckpointError
from sft_hydra.models.build import KEEP_FP32
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import merge_rounding, merged_tensors
from sft_hydra.models.state_dict_map import to_disk
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.schema.config import SftConfig

TRACKER = "latest_checkpointed_iteration.txt"


def export_megatron(
    model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, folder: Path, step: int
) -> ExportReport:
    """Write `folder` (replacing an earlier export of ours), adapters merged. Of several ranks all must call it; the first
    writes. CheckpointError if a tensor has no place in Megatron's checkpoints or is read back changed."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not any(folder.glob(f"iter_*/{MADE_BY}"))):
        raise CheckpointError(f"export.path: {folder} exists and is not an export of ours; give another folder")
    dtype = model.config.dtype or compute_dtype(cfg, model.device)
    rounding = merge_rounding(model, dtype)
    tensors, report = merged_tensors(model, rounding), None
    if model.mesh.rank == 0:
        building = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(building, ignore_errors=True)
        checkpoint = building / f"iter_{step:07d}"
        count = write_megatron(model.config, _on_disk(model, tensors, dtype), checkpoint, step)
        model.config.save_pretrained(checkpoint)
        tokenizer.save_files(checkpoint)
        (building / TRACKER).write_text(str(step))
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
        notes = [_note(model, cfg), None if rounding is None else rounding.describe()]
        note = "; ".join(text for text in notes if text) or None
        report = ExportReport(folder, "megatron", count, str(dtype).removeprefix("torch."), 0.0, 0.0, note=note)
    for _ in tensors:
        pass  # the other ranks give what they hold
    return next(answer for answer in all_gather_objects(report, model.mesh) if answer is not None)


def _on_disk(
    model: DecoderModel, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    for ours, whole in tensors:
        for name, tensor in to_disk(model.config, {ours: whole}):
            yield name, tensor.to(torch.float32 if name.rpartition(".")[2] in KEEP_FP32 else dtype)


def _note(model: DecoderModel, cfg: SftConfig) -> str | None:
    if cfg.model.path is None:
        return None
    left = len(carried_names(model.config, local_folder(cfg.model.path, cfg.model.revision)))
    return (
        f"{left} tensors of multi-token prediction of {cfg.model.path} are not in it (its Hugging Face export has them)"
        if left
        else None
    )
