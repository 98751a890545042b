"""Builds the model of a run on its device and loads its weights.

The weights come from, in order of priority: a checkpoint of this run (resume), `checkpoint.load`, `model.path`, random
initialization.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from sft_hydra.chat.tokenizer import ChatTokenizer, grown_vocabulary
from sft_hydra.checkpoint import state as checkpoints
from sft_hydra.checkpoint.adapter import load_adapter
from sft_hydra.checkpoint.load_hf_weights import load_weights, local_folder
from sft_hydra.config.resume_compat import checkpoint_folder
from sft_hydra.config.rules_model import foreign_model
from sft_hydra.engine.determinism import compute_deterministically
from sft_hydra.engine.materialize import materialize_on_mesh
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import ConfigError
from sft_hydra.kernels.fused_choice import try_fused
from sft_hydra.kernels.library_choice import try_kernels
from sft_hydra.models.build import build_model
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.freeze import freeze_parameters
from sft_hydra.models.hf.causal_lm import GenericModel
from sft_hydra.models.hf.check_contamination import check_contamination
from sft_hydra.models.init_weights import init_weights
from sft_hydra.models.lora import Coverage, add_adapters, init_adapters
from sft_hydra.models.quantized_linear import quantize_linears
from sft_hydra.models.quantized_weight import check_bitsandbytes
from sft_hydra.paths import find_checkpoint, read_progress
from sft_hydra.planning.architecture import read_architecture
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.topology import ranks_of_runner, run_layout
from sft_hydra.process.rank import Rank, this_rank
from sft_hydra.schema.config import Device, SftConfig
from sft_hydra.schema.data import Packing
from sft_hydra.schema.runners import Runner


@dataclass(slots=True)
class RunModel:
    """A model with its weights, and figures for the console."""

    model: DecoderModel
    origin: str
    """Where the weights come from, for messages."""
    parameters: int
    """Number of parameters of the full model, including adapters."""
    trained: int
    """Number of trained parameters."""
    coverage: list[Coverage]
    """The layers that LoRA adapts, or what is trained if `train.freeze` freezes a part; empty for full fine-tuning."""


def start_machine(cfg: SftConfig) -> torch.device:
    """The device of this rank, on which kernels have been tried; sets the number of threads of a CPU run. ConfigError if the
    device is not there."""
    logging.disable_progress_bar()  # the console shows progress, once for all ranks
    rank = this_rank()
    if cfg.train.num_threads is not None:
        torch.set_num_threads(cfg.train.num_threads)
    elif rank.local_world_size > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // rank.local_world_size))
    there = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available(), Device.cpu: True}
    found = ", ".join(device.value for device, is_there in there.items() if is_there)
    device = cfg.device
    if device is Device.auto:
        device = next(device for device, is_there in there.items() if is_there)
    if not there[device]:
        raise ConfigError(
            f"device={device.value}: torch {torch.__version__} finds no such device on this machine; "
            f"available: {found} (device=auto picks one)"
        )
    if cfg.train.deterministic:
        compute_deterministically()
    place = torch.device(device.value) if device is not Device.cuda else _cuda_device(rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)  # Triton launches on the current device
        try_kernels(place)
        try_fused(place)
    return place


def _cuda_device(rank: Rank) -> torch.device:
    """The CUDA device of this rank. ConfigError if there are fewer than ranks."""
    if rank.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"cluster.gpus_per_node={rank.local_world_size}, but this machine has {torch.cuda.device_count()} CUDA devices; use at most that many"
        )
    return torch.device("cuda", rank.local_rank)


def new_model(
    cfg: SftConfig,
    tokenizer: ChatTokenizer,
    device: torch.device,
    layout: Layout | None = None,
    *,
    is_trained: bool = True,
) -> RunModel:
    """The model at the start of training, sharded over the ranks (None: only this one): weights from `checkpoint.load`,
    `model.path` or random initialization, then LoRA. Without `is_trained`, all weights are kept in the compute dtype."""
    architecture = model_architecture(cfg, tokenizer)
    if problems := list(foreign_model(cfg)):  # for a model on the hub, the rules could not check this
        raise ConfigError(*problems)
    # trained weights are fp32 masters; a frozen base is stored in the compute dtype
    masters = cfg.peft is None and is_trained
    dtype = torch.float32 if masters else compute_dtype(cfg.train.precision, device)
    packed = cfg.data.packing is not Packing.none
    model = build_model(architecture, "meta", dtype, generic=cfg.model.generic, packed=packed)
    _check_length(model, cfg.seq_length)
    if cfg.peft is not None and cfg.peft.quantize_base is not None:
        check_bitsandbytes(cfg.peft.quantize_base)
        quantize_linears(model, cfg.peft.quantize_base)
    coverage = add_adapters(model, cfg.peft, tokenizer.new_tokens.ids) if cfg.peft is not None else []
    if cfg.train.freeze or cfg.train.trainable:
        coverage = freeze_parameters(model, cfg.train.freeze, cfg.train.trainable)
    sizes = [
        (model.quantized[name].shape.numel() if name in model.quantized else p.numel(), p.requires_grad)
        for name, p in model.named_parameters()
    ]
    materialize_on_mesh(model, cfg.train, layout or Layout(), device)
    if cfg.model.path is not None:
        load_weights(model, cfg.model.path, cfg.model.revision, tokenizer.new_tokens)
        origin = cfg.model.path
    else:
        init_weights(model, cfg.seed, cfg.model.init_std)
        origin = f"random start, seed {cfg.seed}"
    if cfg.peft is not None:
        init_adapters(model, cfg.seed)
        if cfg.peft.path is not None:
            load_adapter(model, cfg.peft.path)
            origin += f" with the adapter {cfg.peft.path}"
    if cfg.checkpoint.load is not None:
        step = find_checkpoint(cfg.checkpoint.load)
        if cfg.peft is not None and cfg.peft.path is not None and read_progress(step)["adapters_only"]:
            raise ConfigError(
                f"checkpoint.load={step} and peft.path={cfg.peft.path} both contain adapters; remove one of them"
            )
        checkpoints.load(step, model, None)
        origin = str(step)
    if isinstance(model, GenericModel) and packed:
        check_contamination(model)
    parameters, trained = sum(size for size, _ in sizes), sum(size for size, grows in sizes if grows)
    return RunModel(model, origin, parameters, trained, coverage)


def _check_length(model: DecoderModel, seq_length: int) -> None:
    """ConfigError if `seq_length` is more than the learned positions of the model."""
    learned = model.learned_positions if isinstance(model, GenericModel) else None
    if learned is not None and seq_length > learned:
        raise ConfigError(
            f"seq_length={seq_length}: this model has only {learned} learned positions; use seq_length={learned}"
        )


def model_architecture(cfg: SftConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Fields of the model's config.json; with random initialization, `vocab_size` defaults to the tokenizer's."""
    if cfg.model.path is not None:
        local_folder(cfg.model.path, cfg.model.revision)  # downloads a model from the hub, with its config
    architecture = read_architecture(cfg)
    if cfg.model.path is None:
        architecture = {"vocab_size": tokenizer.vocab_size, **architecture}
    return grown_vocabulary(cfg, architecture, tokenizer)


def trained_model(cfg: SftConfig, tokenizer: ChatTokenizer, device: torch.device) -> RunModel:
    """The model to evaluate, export or talk to, laid out as for training if there are several ranks: the run's latest
    checkpoint if it has one, else as training would start. Only to be exported, its weights are fp32 masters. ConfigError if
    it is a random start."""
    step = checkpoints.latest(checkpoint_folder(cfg))
    if step is None and cfg.model.path is None and cfg.checkpoint.load is None:
        raise ConfigError(
            f"runner={cfg.runner.value}: {checkpoint_folder(cfg)} contains no checkpoint, and neither model.path nor "
            "checkpoint.load is set; train first (the same command without runner=), or set name=... to a trained run"
        )
    layout = None if ranks_of_runner(cfg) == (1, 1) else run_layout(cfg, model_architecture(cfg, tokenizer))
    built = new_model(cfg, tokenizer, device, layout, is_trained=cfg.runner is Runner.export)
    if step is not None:
        checkpoints.load(step, built.model, None)
        built.origin = str(step)
    return built
