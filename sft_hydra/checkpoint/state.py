"""Checkpoints of a run: `step_<N>/` with weights, moments and progress, in safetensors and JSON.

Owns that a checkpoint is whole or does not count: written as `step_<N>.tmp`, flushed to disk, renamed, and only then
marked COMPLETE. With LoRA the adapters alone are saved: the base is where it came from.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sft_hydra.config.schema import SftConfig
from sft_hydra.engine.loop import TrainState
from sft_hydra.engine.optimizer import OptimizerSet
from sft_hydra.engine.schedule import rows_per_step
from sft_hydra.errors import CheckpointError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import is_adapter

FORMAT = 1
MODEL, OPTIMIZER, STATE, COMPLETE = "model.safetensors", "optimizer.safetensors", "state.json", "COMPLETE"


def save(folder: Path, model: DecoderModel, optimizer: OptimizerSet, state: TrainState, cfg: SftConfig) -> Path:
    """Write `folder/step_<N>` and drop all but the newest `checkpoint.keep_last`. Returns the checkpoint's folder."""
    final = folder / f"step_{state.step}"
    building = folder / f"step_{state.step}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_file(_weights(model), building / MODEL)
    save_file(_moments(model, optimizer), building / OPTIMIZER)
    (building / STATE).write_text(json.dumps(_progress(model, optimizer, state, cfg), indent=1))
    for file in building.iterdir():
        _flush(file)
    _flush(building)
    _remove(final)
    building.rename(final)
    _flush(folder)
    (final / COMPLETE).touch()
    _flush(final)
    for old in _complete_steps(folder)[: -max(1, cfg.checkpoint.keep_last)]:
        _remove(old)
    return final


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    steps = _complete_steps(folder)
    return steps[-1] if steps else None


def find(path: str | Path) -> Path:
    """The checkpoint that a user means by a path: a `step_<N>`, a folder of them, or a run's folder."""
    path = Path(path)
    if (path / COMPLETE).is_file():
        return path
    for folder in (path, path / "checkpoints"):
        if (step := latest(folder)) is not None:
            return step
    raise CheckpointError(
        f"{path} is not a complete checkpoint and holds none (a folder step_<N> with a file {COMPLETE})"
    )


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What `state.json` says: `state` (as TrainState), `adapters_only`, `optimizer`, and the `sizes` and `rates` in use."""
    try:
        progress = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / STATE} cannot be read: {error}") from error
    if progress.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint} has format {progress.get('format')}; this version reads format {FORMAT}")
    return progress


def load(checkpoint: Path, model: DecoderModel, optimizer: OptimizerSet | None) -> TrainState:
    """Fill the model, and the optimizer if one is given, from a checkpoint folder. CheckpointError if it does not fit.

    A checkpoint of a whole model fills the base of a model with adapters, which stay as they are.
    """
    progress = read_progress(checkpoint)
    adapters = progress["adapters_only"]
    targets = {name: tensor for name, tensor in model.state_dict().items() if is_adapter(name) == adapters}
    if not targets:
        raise CheckpointError(f"{checkpoint} holds LoRA adapters only; the model has none (peft=lora)")
    _copy_into(checkpoint / MODEL, targets)
    if optimizer is not None:
        if progress["optimizer"] != optimizer.kinds:
            raise CheckpointError(
                f"{checkpoint} holds the state of {'+'.join(progress['optimizer'])}, this run's optimizer is "
                f"{'+'.join(optimizer.kinds)}"
            )
        _load_moments(checkpoint / OPTIMIZER, model, optimizer)
    return TrainState(**progress["state"])


def _weights(model: DecoderModel) -> dict[str, torch.Tensor]:
    """What of the model is saved: adapters if it has any, else everything."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if is_adapter(name)} or state


def _moments(model: DecoderModel, optimizer: OptimizerSet) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state_of(parameter).items()
    }


def _progress(model: DecoderModel, optimizer: OptimizerSet, state: TrainState, cfg: SftConfig) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "state": asdict(state),
        "adapters_only": any(is_adapter(name) for name, _ in model.named_parameters()),
        "optimizer": optimizer.kinds,
        "sizes": {
            "seq_length": cfg.seq_length,
            "global_batch_size": rows_per_step(cfg),
            "micro_batch_size": cfg.train.micro_batch_size,
        },
        "rates": asdict(cfg.optimizer),
    }


@torch.no_grad()
def _copy_into(file: Path, targets: dict[str, torch.Tensor]) -> None:
    with _open(file) as stored:
        names = set(stored.keys())
        problems = [f"{file} lacks {name}" for name in targets if name not in names]
        problems += [f"{file} has {name}, which the model does not" for name in sorted(names - targets.keys())]
        for name, target in targets.items():
            if name in names and (shape := tuple(stored.get_slice(name).get_shape())) != tuple(target.shape):
                problems.append(f"{file}: {name} is {shape}, the model's is {tuple(target.shape)}")
        if problems:
            raise CheckpointError(*problems[:20])
        for name, target in targets.items():
            target.copy_(stored.get_tensor(name))


def _load_moments(file: Path, model: DecoderModel, optimizer: OptimizerSet) -> None:
    with _open(file) as stored:
        moments: dict[str, dict[str, torch.Tensor]] = {}
        for key in stored.keys():  # noqa: SIM118 (not a dictionary)
            name, _, kind = key.rpartition("/")
            moments.setdefault(name, {})[kind] = stored.get_tensor(key)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if moments and moments.keys() != trained.keys():
        raise CheckpointError(
            f"{file} holds the optimizer's state of other parameters than those that are trained now: "
            f"{', '.join(sorted(moments.keys() ^ trained.keys())[:5])}"
        )
    for name, state in moments.items():
        optimizer.set_state(trained[name], state)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _complete_steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    steps = [path for path in folder.glob("step_*") if path.suffix != ".tmp" and (path / COMPLETE).is_file()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step_")))


def _remove(checkpoint: Path) -> None:
    """The mark goes first: what is half removed is no checkpoint."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _flush(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
