"""The model of a run: where its weights come from, in which order of priority, and on which device.

Owns that order: a checkpoint of this run (resume), then `checkpoint.load`, then `model.path`, then a random start.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from sft_hydra.checkpoint import state as checkpoints
from sft_hydra.checkpoint.stream import load_weights
from sft_hydra.config.architecture import read_architecture
from sft_hydra.config.schema import Device, SftConfig
from sft_hydra.data.tokenizer import ChatTokenizer
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import ConfigError, TokenizerMismatchError
from sft_hydra.models.build import build_model
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.initial import init_weights
from sft_hydra.models.lora import Coverage, apply_lora


@dataclass(slots=True)
class RunModel:
    model: DecoderModel
    origin: str
    """Where the weights come from, for people."""
    coverage: list[Coverage]
    """What LoRA adapts; empty for full training."""


def start_machine(cfg: SftConfig) -> torch.device:
    """The device of this run; sets the number of threads of a CPU run. ConfigError if the device is not there."""
    if cfg.train.num_threads is not None:
        torch.set_num_threads(cfg.train.num_threads)
    there = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available(), Device.cpu: True}
    if cfg.device is Device.auto:
        return torch.device(next(device.value for device, found in there.items() if found))
    if not there[cfg.device]:
        raise ConfigError(
            f"device={cfg.device.value}: torch {torch.__version__} finds no such device on this machine; "
            f"it has {', '.join(device.value for device, found in there.items() if found)} (device=auto picks one)"
        )
    return torch.device(cfg.device.value)


def new_model(cfg: SftConfig, tokenizer: ChatTokenizer, device: torch.device) -> RunModel:
    """The model as training starts with it: weights from `checkpoint.load`, `model.path` or a random start, then LoRA."""
    architecture = read_architecture(cfg)
    if cfg.model.path is None:
        architecture = {"vocab_size": tokenizer.vocab_size, **architecture}
    if architecture["vocab_size"] < tokenizer.vocab_size:
        raise TokenizerMismatchError(
            f"tokenizer_mismatch: the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size:,} ids, the model "
            f"{cfg.model.path or cfg.model.name} only {architecture['vocab_size']:,}; set tokenizer.path to the model's own"
        )
    # Trained weights are fp32 masters; a frozen base is kept in the precision it is used in.
    dtype = torch.float32 if cfg.peft is None else compute_dtype(cfg, device)
    model = build_model(architecture, device, dtype)
    if cfg.model.path is not None:
        load_weights(model, cfg.model.path, cfg.model.revision)
        origin = cfg.model.path
    else:
        init_weights(model, cfg.seed, cfg.model.init_std)
        origin = f"random start, seed {cfg.seed}"
    coverage = apply_lora(model, cfg.peft, cfg.seed) if cfg.peft is not None else []
    if cfg.checkpoint.load is not None:
        step = checkpoints.find(cfg.checkpoint.load)
        checkpoints.load(step, model, None)
        origin = str(step)
    return RunModel(model, origin, coverage)


def trained_model(cfg: SftConfig, tokenizer: ChatTokenizer, device: torch.device) -> RunModel:
    """The model to evaluate, export or talk to: the run's latest checkpoint if it has one, else as training would start."""
    built = new_model(cfg, tokenizer, device)
    step = checkpoints.latest(checkpoint_folder(cfg))
    if step is not None:
        checkpoints.load(step, built.model, None)
        built.origin = str(step)
    return built


def checkpoint_folder(cfg: SftConfig) -> Path:
    """Where this run's checkpoints are."""
    assert cfg.run_dir is not None
    return Path(cfg.checkpoint.save) if cfg.checkpoint.save else Path(cfg.run_dir) / "checkpoints"
