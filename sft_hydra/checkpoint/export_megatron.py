"""Exports a trained model as a Megatron checkpoint: `export_megatron`.

    <folder>/latest_checkpointed_iteration.txt, latest_train_state.pt
    <folder>/iter_<step>/     .metadata, __0_<n>.distcp, common.pt, metadata.json, run_config.yaml, train_state.pt;
                              config.json and the tokenizer beside them

Megatron-Core reads it by its sharded state dict. The last two files, and latest_train_state.pt, are Megatron-Bridge's, as its
public code reads them (training/checkpointing.py and training/utils/checkpoint_utils.py of 067f987). Its run_config.yaml has
the layout, and states that there is neither optimizer nor random state; it does not name a provider class, which depends on the
installed version, so Bridge takes the model from a recipe and these weights as `checkpoint.pretrained_checkpoint`.
"""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
import yaml

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.checkpoint.hf_export import ExportReport
from sft_hydra.checkpoint.load_hf_weights import carried_tensors, local_folder
from sft_hydra.checkpoint.megatron import write_megatron
from sft_hydra.checkpoint.torch_dist import MADE_BY
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import CheckpointError
from sft_hydra.models.build import KEEP_FP32
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import merge_rounding, merged_tensors
from sft_hydra.models.state_dict_map import to_disk
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.planning.architecture import is_hub_id
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.train import Precision

TRACKER = "latest_checkpointed_iteration.txt"
COUNTERS = ("consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
PHASES = ("do_train", "do_valid", "do_test")


def export_megatron(
    model: DecoderModel,
    source: ModelConfig,
    precision: Precision | None,
    tokenizer: ChatTokenizer,
    folder: Path,
    step: int,
) -> ExportReport:
    """Write `folder` (replacing an earlier export of ours), adapters merged. All ranks must call it; the first writes.
    `source`: the config's model section; `step`: number of the iteration folder. CheckpointError if a tensor has no
    counterpart in Megatron's checkpoints or differs when read back."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not any(folder.glob(f"iter_*/{MADE_BY}"))):
        raise CheckpointError(f"export.path: {folder} exists and was not written by an export; choose another folder")
    dtype = model.config.dtype or compute_dtype(precision, model.device)
    rounding = merge_rounding(model, dtype)
    tensors, report = merged_tensors(model, rounding), None
    if model.mesh.rank == 0:
        building = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(building, ignore_errors=True)
        checkpoint = building / f"iter_{step:07d}"
        others = carried_tensors(model.config, local_folder(source.path, source.revision)) if source.path else iter(())
        count = write_megatron(model.config, chain(_on_disk(model, tensors, dtype), others), checkpoint, step)
        model.config.save_pretrained(checkpoint)
        tokenizer.save_files(checkpoint)
        _write_bridge_files(building, checkpoint, step, source.path)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
        note = None if rounding is None else rounding.describe()
        report = ExportReport(folder, "megatron", count, str(dtype).removeprefix("torch."), 0.0, 0.0, note=note)
    for _ in tensors:
        pass  # gathering is collective: the other ranks send their shards
    return next(answer for answer in all_gather_objects(report, model.mesh) if answer is not None)


def _write_bridge_files(folder: Path, checkpoint: Path, step: int, source: str | None) -> None:
    """What stands around the tensors in a checkpoint of Megatron-Bridge."""
    (folder / TRACKER).write_text(str(step))
    counts = {name: torch.tensor(0) for name in COUNTERS} | {name: torch.tensor(False) for name in PHASES}
    flops = torch.tensor(0.0, dtype=torch.float64)
    torch.save(
        {"step": torch.tensor(step), "floating_point_operations_so_far": flops, **counts}, checkpoint / "train_state.pt"
    )
    shutil.copy(checkpoint / "train_state.pt", folder / "latest_train_state.pt")
    run_config = {
        "model": {
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 1,
            **({"hf_model_id": source} if source and is_hub_id(source) else {}),
        },
        "checkpoint": {"save_optim": False, "save_rng": False, "fully_parallel_save": False},
    }
    (checkpoint / "run_config.yaml").write_text(yaml.safe_dump(run_config, sort_keys=False))


def _on_disk(
    model: DecoderModel, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    for ours, whole in tensors:
        for name, tensor in to_disk(model.config, {ours: whole}):
            yield name, tensor.to(torch.float32 if name.rpartition(".")[2] in KEEP_FP32 else dtype)
