"""Rules about the model: its architecture, its layout over ranks, its export."""

from collections.abc import Iterator

from sft_hydra.errors import ModelError
from sft_hydra.planning.architecture import (
    FAMILIES,
    is_generic,
    is_mixture,
    length_of_fixed_positions,
    read_architecture,
)
from sft_hydra.planning.layout import layout_problems, num_experts
from sft_hydra.planning.topology import possible_layouts, rows_per_step, run_layout
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Packing
from sft_hydra.schema.runners import ExportFormat, Runner
from sft_hydra.schema.train import Recompute


def model_is_set(cfg: SftConfig) -> Iterator[str]:
    """There is a model: a path or an architecture, with weights that are not quantized."""
    try:
        architecture = read_architecture(cfg)
    except ModelError as error:
        where = f"model.path={cfg.model.path}: " if cfg.model.path else ""
        yield from (f"{where}{problem}" for problem in error.problems)
        return
    if "quantization_config" in architecture:
        method = architecture["quantization_config"].get("quant_method", "some method")
        yield f"model.path={cfg.model.path}: quantized weights ({method}) are not supported; use the unquantized model"
    if cfg.model.path is None and not architecture:
        yield f"model={cfg.model.name} needs model.path=<folder or hub id>"
    elif cfg.model.path is None and "model_type" not in architecture:
        yield "model.architecture has no model_type; add it, e.g. +model.architecture.model_type=qwen3"


def layout(cfg: SftConfig) -> Iterator[str]:
    """Parallel sizes fit the number of ranks, the model and the batch."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_set reports it
    plan = run_layout(cfg, architecture)
    problems = list(layout_problems(plan, architecture, cfg.seq_length))
    rows = rows_per_step(cfg.train, cfg.seq_length)
    if cfg.runner is Runner.train and not problems and rows % plan.dp:
        problems = [
            f"train.global_batch_size={rows} is not a multiple of the data-parallel size {plan.dp}; "
            f"use train.global_batch_size={-(-rows // plan.dp) * plan.dp}"
        ]
    if not any(possible_layouts(cfg, architecture)):  # otherwise sizes that are null are chosen to fit
        yield from problems


def foreign_model(cfg: SftConfig) -> Iterator[str]:
    """What is not supported for models that train through the transformers implementation."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_set reports it
    if not is_generic(cfg, architecture):
        return
    family = architecture.get("model_type", "of this model")
    why = f"model_type {family} trains through the transformers implementation (our own: {', '.join(FAMILIES)})"
    if cfg.model.path is None:
        yield f"{why}; random initialization is not supported for it; set model.path"
    if is_mixture(architecture):
        yield f"{why}, which supports dense models only; mixture-of-experts models with their own implementation are qwen3_moe and nemotron_h"
    for key in ("tp", "pp", "cp", "ep"):
        if (size := getattr(cfg.parallel, key)) is not None and size > 1:
            yield f"parallel.{key}={size}: {why}, which supports FSDP only; remove parallel.{key}"
    for key in ("compile", "fp8"):
        if getattr(cfg.train, key):
            yield f"train.{key}=true: {why}; this is not supported for it; remove it"
    length = length_of_fixed_positions(architecture)
    together = cfg.data.packing is not Packing.none or cfg.train.micro_batch_size > 1
    if length is not None and cfg.seq_length > length and together:
        yield (
            f"seq_length={cfg.seq_length}: beyond {length} tokens this model's RoPE scaling depends on the longest sequence "
            f"in the batch; use seq_length={length}, or data.packing=none with train.micro_batch_size=1"
        )


def routers(cfg: SftConfig) -> Iterator[str]:
    """Expert load balancing is set only for models with routers of that kind."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_set reports it
    requested = {
        "router_aux_loss": (cfg.train.router_aux_loss, "qwen3_moe", "softmax"),
        "router_bias_update_rate": (cfg.train.router_bias_update_rate, "nemotron_h", "sigmoid"),
    }
    for key, (value, family, kind) in requested.items():
        if value <= 0:
            continue
        if architecture.get("model_type") != family or not num_experts(architecture):
            yield f"train.{key}={value:g} needs a mixture of experts with {kind} routers ({family}), which this model is not; remove it"
        elif cfg.train.recompute is not Recompute.none and run_layout(cfg, architecture).pp > 1:
            yield (
                f"train.{key}={value:g} with pipeline parallelism and train.recompute={cfg.train.recompute.value}: routers would "
                "count tokens of another micro-batch when they compute again; set train.recompute=none or parallel.pp=1"
            )
    if cfg.train.router_bias_update_rate and cfg.peft is not None:
        yield "train.router_bias_update_rate updates the base model, which peft=lora freezes; remove one of them"


def export_formats(cfg: SftConfig) -> Iterator[str]:
    """Megatron's checkpoints hold whole models, and only Hugging Face folders go to the hub."""
    formats = cfg.export.formats if cfg.export.formats is not None else [cfg.export.format]
    if not formats:
        yield "export.formats=[] is empty; remove it, or use export.auto=false to skip the export"
    if len(set(formats)) < len(formats):
        yield f"export.formats contains a format twice: {', '.join(form.value for form in formats)}"
    if ExportFormat.megatron in formats and cfg.peft is not None and not cfg.export.merge:
        yield "export.format=megatron with peft=lora writes the merged model: add export.merge=true"
    if cfg.export.push_to is not None and ExportFormat.hf not in formats:
        yield f"export.push_to={cfg.export.push_to} uploads a Hugging Face folder: use export.formats=[hf,megatron]"
