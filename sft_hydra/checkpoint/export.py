"""A trained model as a Hugging Face folder that transformers loads as it is.

Owns the promise of an export: it is loaded back from disk by transformers, and its logits are those of the live model,
before it gets its name.
"""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sft_hydra.checkpoint.adapter import limits, merge_adapter, write_adapter
from sft_hydra.checkpoint.shards import write_tensors
from sft_hydra.checkpoint.stream import carried_tensors, local_folder
from sft_hydra.config.schema import SftConfig
from sft_hydra.data.tokenizer import ChatTokenizer
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import CheckpointError
from sft_hydra.models.build import KEEP_FP32, transformers_class, transformers_model, use_published_limits
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import is_adapter, merged_state
from sft_hydra.models.names import to_disk

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest logit
PROBE_TOKENS = 64
OURS = ("config.json", "adapter_config.json")  # what a folder holds that an export may replace


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how well it agrees with the live model."""

    folder: Path
    kind: str  # `model` or `adapter`
    tensors: int
    dtype: str
    max_diff: float  # between logits of the export and of the live model
    allowed_diff: float
    note: str | None = None  # what the user should know before using it


def export(model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, folder: Path) -> ExportReport:
    """Write `folder` (replacing an earlier export). LoRA: the adapter, or the merged model with `export.merge`.

    An adapter whose base exists nowhere else (a random start) gets it as `folder/base`. CheckpointError if the export
    does not agree with the live model.
    """
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).is_file() for name in OURS):
        raise CheckpointError(f"export.path: {folder} exists and is not an export; give another folder")
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    adapted = any(is_adapter(name) for name, _ in model.named_parameters())
    if adapted and not cfg.export.merge:
        report = _export_adapter(model, cfg, tokenizer, building, folder)
    else:
        report = _export_model(model, cfg, tokenizer, building, folder)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return report


def _export_model(
    model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, building: Path, folder: Path
) -> ExportReport:
    from transformers import AutoModelForCausalLM

    dtype = _dtype(model, cfg)
    tensors = _write_model(model, merged_state(model), dtype, cfg, tokenizer, building)
    reloaded = AutoModelForCausalLM.from_pretrained(building, dtype=torch.float32)
    return _report(model, reloaded, folder, "model", tensors, dtype)


def _export_adapter(
    model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, building: Path, folder: Path
) -> ExportReport:
    assert cfg.peft is not None
    base = cfg.model.path or str(folder / "base")
    base_state = {name: tensor for name, tensor in model.state_dict().items() if not is_adapter(name)}
    dtype = torch.float32
    if cfg.model.path is None:
        dtype = _dtype(model, cfg)
        _write_model(model, base_state, dtype, cfg, tokenizer, building / "base")
    tensors = write_adapter(model, cfg.peft, base, building)
    tokenizer.save_files(building)
    reloaded = transformers_model(model.config, merge_adapter(model.config, building, base_state))
    report = _report(model, reloaded, folder, "adapter", tensors, dtype)
    return replace(report, note=limits(model))


def _dtype(model: DecoderModel, cfg: SftConfig) -> torch.dtype:
    """That of the source model; after a random start the one that training computed in."""
    return model.config.dtype or compute_dtype(cfg, model.head_weight.device)


def _write_model(
    model: DecoderModel,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype,
    cfg: SftConfig,
    tokenizer: ChatTokenizer,
    folder: Path,
) -> int:
    """Weights, configs and tokenizer. Returns the number of tensors."""
    folder.mkdir(exist_ok=True)
    count = write_tensors(_on_disk(model, state, dtype, cfg), folder)
    config = copy.deepcopy(model.config)
    config.architectures = [transformers_class(config).__name__]
    config.dtype = dtype
    config.__dict__.pop("auto_map", None)  # names code that is not part of the export
    for kind in ("bos", "eos", "pad"):
        setattr(config, f"{kind}_token_id", getattr(tokenizer, f"{kind}_id"))
    config.save_pretrained(folder)
    _generation_config(cfg, tokenizer).save_pretrained(folder)
    tokenizer.save_files(folder)
    return count


def _on_disk(
    model: DecoderModel, state: dict[str, torch.Tensor], dtype: torch.dtype, cfg: SftConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the export by its name on disk, with those of the source model that are not trained here."""
    for name, tensor in to_disk(model.config, state):
        yield name, tensor.to(torch.float32 if name.rpartition(".")[2] in KEEP_FP32 else dtype)
    if cfg.model.path is not None:
        yield from carried_tensors(model.config, local_folder(cfg.model.path, cfg.model.revision))


def _generation_config(cfg: SftConfig, tokenizer: ChatTokenizer) -> Any:
    """The source model's, if it has one, with the ids that end a turn first among those that end generation."""
    from transformers import GenerationConfig

    config = GenerationConfig()
    if cfg.model.path is not None:
        source = local_folder(cfg.model.path, cfg.model.revision)
        if (source / "generation_config.json").is_file():
            config = GenerationConfig.from_pretrained(source)
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = [*tokenizer.end_of_turn_ids, tokenizer.eos_id, *known]
    config.eos_token_id = list(dict.fromkeys(i for i in stops if i is not None))
    config.bos_token_id, config.pad_token_id = tokenizer.bos_id, tokenizer.pad_id
    return config


@torch.no_grad()
def _report(
    model: DecoderModel, reloaded: Any, folder: Path, kind: str, tensors: int, dtype: torch.dtype
) -> ExportReport:
    """Compare logits on a fixed text of random ids; CheckpointError if they differ by more than rounding explains."""
    device = model.head_weight.device
    ids = torch.randint(0, model.config.vocab_size, (PROBE_TOKENS,), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    cu_seqlens = torch.tensor([0, PROBE_TOKENS], dtype=torch.int32, device=device)
    training = model.training
    hidden = model.eval()(ids, torch.arange(PROBE_TOKENS, device=device), cu_seqlens, PROBE_TOKENS)
    live = (hidden @ model.head_weight.T.to(hidden.dtype)).float()
    model.train(training)
    use_published_limits(reloaded)
    exported = reloaded.to(device).eval()(input_ids=ids[None]).logits[0].float()
    max_diff = float((live - exported).abs().max())
    allowed = TOLERANCE[dtype] * float(live.abs().max())
    if not max_diff <= allowed:
        raise CheckpointError(
            f"{folder}: the export does not agree with the trained model: logits differ by {max_diff:.2e}, rounding to "
            f"{dtype} allows {allowed:.2e}. It was left as {folder.name}.tmp"
        )
    return ExportReport(folder, kind, tensors, str(dtype).removeprefix("torch."), max_diff, allowed)
