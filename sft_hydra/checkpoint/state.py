"""Checkpoints of a run: `step_<N>/` with weights, optimizer state and progress, in safetensors and JSON.

A checkpoint is written as `step_<N>.tmp`, flushed to disk, renamed, and only then marked COMPLETE. Every rank writes its
shards (checkpoint/sharded_tensors.py), the first rank the rest; any layout can load it. With LoRA only the adapters are saved.

Owner of: a checkpoint is complete or does not count.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from sft_hydra.checkpoint.load_hf_weights import is_finite
from sft_hydra.checkpoint.optimizer_state import load_optimizer_state, optimizer_shards
from sft_hydra.checkpoint.sharded_tensors import ShardFiles, ShardRecord, write_shards
from sft_hydra.engine.early_stopping import more_is_better
from sft_hydra.engine.loop import TrainState
from sft_hydra.engine.optimizer import OptimizerSet
from sft_hydra.engine.weight_average import EMA
from sft_hydra.errors import CheckpointError
from sft_hydra.files import unwritable
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import is_adapter, is_of_base, is_saved_with_adapters
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import holds_first_copy, local_shard
from sft_hydra.paths import CHECKPOINT_FORMAT, COMPLETE, STATE, complete_checkpoints, read_progress, state_digest
from sft_hydra.planning.recipe import Recipe
from sft_hydra.schema.train import CheckpointConfig

MODEL, OPTIMIZER = "model", "optimizer"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The part of a checkpoint that one rank writes."""

    rank: int
    step: int
    model: dict[str, ShardRecord]
    optimizer: dict[str, ShardRecord]
    progress: dict[str, Any]
    keep_last: int
    keep_best: str | None


class Saver:
    """Saves checkpoints to one folder; with `checkpoint.async_save` in a background thread, one at a time."""

    def __init__(
        self, folder: Path, recipe: Recipe, settings: CheckpointConfig, origin: dict[str, Any] | None = None
    ) -> None:
        """`origin`: from checkpoint/origin.py, recorded in every checkpoint."""
        self.folder, self.recipe, self.settings, self.origin = folder, recipe, settings, origin or {}
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None  # for the thread
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._room: dict[tuple[str, str], torch.Tensor] = {}  # reused for copies: allocating costs more than copying

    def save(
        self, model: DecoderModel, optimizer: OptimizerSet, state: TrainState, metrics: dict[str, Any] | None = None
    ) -> None:
        """Save the current state; later training does not change it. `metrics`: current values, for `keep_best`. Raises the error of
        an earlier background save."""
        self.wait()
        snapshot = snapshot_state(model, optimizer, state, self.recipe, self.settings, metrics)
        snapshot.progress.update(self.origin)
        if not self.settings.async_save:
            write_snapshot(self.folder, snapshot, self._group)
            return
        copy = to_cpu(snapshot, self._room)
        self._thread = Thread(target=self._write, args=(copy,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until a background save is on disk. Raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_snapshot(self.folder, snapshot, self._group)
        except BaseException as error:
            self._error = error


def save(
    folder: Path,
    model: DecoderModel,
    optimizer: OptimizerSet,
    state: TrainState,
    recipe: Recipe,
    settings: CheckpointConfig,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Write `folder/step_<N>` and delete those that `checkpoint.keep_last` and `keep_best` do not keep. Returns its folder."""
    return write_snapshot(folder, snapshot_state(model, optimizer, state, recipe, settings, metrics), None)


def prunable(folder: Path, keep_last: int, keep_best: str | None) -> list[Path]:
    """Checkpoints that are neither among the newest nor the best one by the metric `keep_best`."""
    steps = complete_checkpoints(folder)
    kept = set(steps[-keep_last:])
    if keep_best is not None:
        sign = -1 if more_is_better(keep_best) else 1
        values = {step: read_progress(step).get("metrics", {}).get(keep_best) for step in steps}
        rated = [step for step in steps if values[step] is not None]
        kept |= {min(rated, key=lambda step: sign * values[step])} if rated else set()
    return [step for step in steps if step not in kept]


def snapshot_state(
    model: DecoderModel,
    optimizer: OptimizerSet,
    state: TrainState,
    recipe: Recipe,
    settings: CheckpointConfig,
    metrics: dict[str, Any] | None = None,
) -> Snapshot:
    """The part of the checkpoint that this rank writes; shares the memory of model and optimizer."""

    def own(tensors: dict[str, torch.Tensor]) -> dict[str, ShardRecord]:
        mine = {name: tensor for name, tensor in tensors.items() if _writes(model, name, tensor)}
        parts = (part for name, tensor in mine.items() for part in optimizer_shards(name, tensor))
        return {name: part for name, part in parts if part.values.numel()}

    return Snapshot(
        rank=model.mesh.rank,
        step=state.step,
        model=own(_weights(model)),
        optimizer=own(_optimizer_state(model, optimizer)),
        progress=_progress(model, optimizer, state, recipe) | {"metrics": dict(metrics or {})},
        keep_last=max(1, settings.keep_last),
        keep_best=settings.keep_best,
    )


def to_cpu(snapshot: Snapshot, room: dict[tuple[str, str], torch.Tensor]) -> Snapshot:
    """A copy on the CPU, in the memory of `room`, which an earlier snapshot may have used."""

    def copied(kind: str, parts: dict[str, ShardRecord]) -> dict[str, ShardRecord]:
        copies = {}
        for name, part in parts.items():
            own = room.get((kind, name))
            if own is None or own.shape != part.values.shape:
                own = torch.empty_like(part.values, device="cpu", pin_memory=part.values.is_cuda)
                room[kind, name] = own
            copies[name] = replace(part, values=own.copy_(part.values, non_blocking=True))
        return copies

    copy = replace(snapshot, model=copied(MODEL, snapshot.model), optimizer=copied(OPTIMIZER, snapshot.optimizer))
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copy


def write_snapshot(folder: Path, snapshot: Snapshot, group: dist.ProcessGroup | None) -> Path:
    """Write a checkpoint; all ranks must call it. `group`: for barriers (None: the default group). Returns its folder.
    CheckpointError if it cannot be written."""
    final = folder / f"step_{snapshot.step}"
    building = folder / f"step_{snapshot.step}.tmp"
    first = snapshot.rank == 0
    if first:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    _barrier(group)
    try:
        for kind, parts in ((MODEL, snapshot.model), (OPTIMIZER, snapshot.optimizer)):
            _flush(write_shards(building, kind, snapshot.rank, parts))
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(
            f"{building}: cannot be written {unwritable(problem)} Earlier checkpoints are untouched."
        ) from problem
    _barrier(group)
    if first:
        try:
            _finish(folder, building, final, snapshot.progress)
        except OSError as problem:
            raise CheckpointError(
                f"{building}: cannot be written {unwritable(problem)} Earlier checkpoints are untouched."
            ) from problem
        for old in prunable(folder, snapshot.keep_last, snapshot.keep_best):
            _remove(old)
    _barrier(group)
    return final


def _finish(folder: Path, building: Path, final: Path, progress: dict[str, Any]) -> None:
    """On the first rank, after all shards are on disk: write the progress, rename the folder, mark it COMPLETE."""
    (building / STATE).write_text(json.dumps(progress, indent=1))
    _flush(building / STATE)
    _flush(building)
    _remove(final)
    building.rename(final)
    _flush(folder)
    mark = final / COMPLETE
    mark.write_text(state_digest(final))
    _flush(mark)
    _flush(final)


def _barrier(group: dist.ProcessGroup | None) -> None:
    """Wait for all ranks, on the CPU."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1), group=group)


def _writes(model: DecoderModel, name: str, tensor: torch.Tensor) -> bool:
    """Whether this rank writes its shard of a tensor: of all replicas, only the first is written."""
    mesh = model.mesh
    if isinstance(tensor, DTensor):
        mine = holds_first_copy(tensor)
    else:
        mine = mesh.dp.rank == 0 and mesh.seq_rank == 0
    return mine and not model.is_copy(name.partition("/")[0])


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    steps = complete_checkpoints(folder)
    return steps[-1] if steps else None


def load(checkpoint: Path, model: DecoderModel, optimizer: OptimizerSet | None) -> TrainState:
    """Load the model, and the optimizer unless None, from a checkpoint folder. CheckpointError if they do not match.

    A checkpoint of a full model is loaded into the base of a model with adapters, which do not change.
    """
    progress = read_progress(checkpoint)
    adapters = progress["adapters_only"]
    belongs = partial(is_saved_with_adapters, model) if adapters else is_of_base
    targets = {name: tensor for name, tensor in model.state_dict().items() if belongs(name)}
    if not any(all_gather_objects(len(targets), model.mesh)):
        raise CheckpointError(f"{checkpoint} contains only LoRA adapters, but the model has none; set peft=lora")
    files = ShardFiles(checkpoint, MODEL)
    _check(files, targets, model)
    broken = []
    for name, tensor in targets.items():
        broken += [] if is_finite(_read(files, name, tensor, model)) else [name]
    if everywhere := sorted({name for names in all_gather_objects(broken, model.mesh) for name in names}):
        shown = ", ".join(everywhere[:5])
        raise CheckpointError(f"{checkpoint}: {len(everywhere)} tensors have non-finite values: {shown}")
    if optimizer is not None:
        load_optimizer(checkpoint, model, optimizer)
    return TrainState(**progress["state"])


def load_average(checkpoint: Path, model: DecoderModel) -> None:
    """Load the averages of the trained weights. CheckpointError if the checkpoint has none."""
    files = ShardFiles(checkpoint, OPTIMIZER)
    trained = {f"{name}/{EMA}": p for name, p in model.named_parameters() if p.requires_grad}
    if missing := [key for key in trained if key not in files.shapes]:
        raise CheckpointError(
            f"{checkpoint} has no average of {missing[0].removesuffix(f'/{EMA}')}: export.ema=true needs a run that was trained "
            "with train.ema_decay"
        )
    for key, parameter in trained.items():
        files.read_into(key, parameter)


def load_optimizer(checkpoint: Path, model: DecoderModel, optimizer: OptimizerSet) -> None:
    """Load only the optimizer state; learning rates are those of the config. CheckpointError if it is of another optimizer."""
    kinds = read_progress(checkpoint)["optimizer"]
    if kinds != optimizer.kinds:
        raise CheckpointError(
            f"{checkpoint} has the state of {'+'.join(kinds)}, but this run's optimizer is {'+'.join(optimizer.kinds)}"
        )
    optimizer.rounded = load_optimizer_state(ShardFiles(checkpoint, OPTIMIZER), model, optimizer)


def _weights(model: DecoderModel) -> dict[str, torch.Tensor]:
    """Tensors of the model that are saved: only its adapters if it has any."""
    state = model.state_dict()
    if not any(is_adapter(name) for name in state):
        return state
    return {name: tensor for name, tensor in state.items() if is_saved_with_adapters(model, name)}


def _optimizer_state(model: DecoderModel, optimizer: OptimizerSet) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state_of(parameter).items()
    }


def _progress(model: DecoderModel, optimizer: OptimizerSet, state: TrainState, recipe: Recipe) -> dict[str, Any]:
    return {
        "format": CHECKPOINT_FORMAT,
        "state": asdict(state),
        "adapters_only": any(is_adapter(name) for name, _ in model.named_parameters()),
        "optimizer": optimizer.kinds,
        "sizes": {
            "seq_length": recipe.seq_length,
            "global_batch_size": recipe.rows_per_step,
            "micro_batch_size": recipe.train.micro_batch_size,
        },
        "rates": asdict(recipe.optimizer),
    }


def _check(files: ShardFiles, targets: dict[str, torch.Tensor], model: DecoderModel) -> None:
    shapes = {
        name: tuple(model.quantized[name].shape if name in model.quantized else tensor.shape)
        for name, tensor in targets.items()
    }
    everywhere = {name for names in all_gather_objects(list(shapes), model.mesh) for name in names}
    problems = files.problems(shapes, everywhere)
    if problems:
        raise CheckpointError(*problems[:20])


def _read(files: ShardFiles, name: str, tensor: torch.Tensor, model: DecoderModel) -> torch.Tensor:
    """Fill what this rank holds of a tensor. Returns the values that were read."""
    quantized = model.quantized.get(name)
    part, where = local_shard(tensor)
    if quantized is None:
        files.read_into(name, tensor)
        return part
    needed = quantized.needed(where)
    values = torch.empty([place.stop - place.start for place in needed], dtype=quantized.dtype)
    files.check_whole(name, values.numel() - files.fill(name, values, needed))
    if part.numel():
        quantized.fill(tensor, values)
    return values


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its COMPLETE mark first, so that a partly deleted one is not valid."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
