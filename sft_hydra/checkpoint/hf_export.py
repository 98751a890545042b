"""Exports a trained model as a Hugging Face folder that transformers loads unchanged.

Before an export gets its final name, transformers loads it from disk, and its logits are compared with those of the live
model.

Owner of: an export computes what was trained.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.checkpoint.adapter import limits, merge_adapter, write_adapter
from sft_hydra.checkpoint.hf_config import generation_config, write_config
from sft_hydra.checkpoint.hf_shards import is_export, write_tensors
from sft_hydra.checkpoint.load_hf_weights import carried_tensors, local_folder
from sft_hydra.engine.microbatches import forward_hidden, load_batches
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.errors import CheckpointError
from sft_hydra.models.build import KEEP_FP32, build_model, transformers_model, use_published_limits
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import add_adapters, is_adapter, merge_rounding, merged_tensors
from sft_hydra.models.quantized_linear import whole_tensors
from sft_hydra.models.state_dict_map import to_disk
from sft_hydra.parallel.collectives import all_gather_objects, gather_tokens
from sft_hydra.records import PackedRow
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision

Tensors = Iterator[tuple[str, torch.Tensor]]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest logit
ALIKE = 1e-3  # of the largest logit: tolerance between two fp32 implementations with equal weights
PROBE_TOKENS = 64
GROWN = (
    "the base needs a row for every new token: peft's AutoPeftModelForCausalLM adds them; before PeftModel, call "
    "resize_token_embeddings"
)


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What an export needs of the config that the model was trained with."""

    source: ModelConfig
    peft: LoraConfig | None  # None: full fine-tuning
    merge: bool  # LoRA: write the merged model instead of the adapter
    precision: Precision | None  # train.precision
    packed: bool  # trained on packed sequences (data.packing)
    micro_batch_tokens: int  # Recipe.micro_batch_tokens


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how closely its logits match the live model."""

    folder: Path
    kind: str  # `model` or `adapter`
    tensors: int
    dtype: str
    max_diff: float  # largest difference between logits of the export and of the live model
    allowed_diff: float
    alike_diff: float | None = (
        None  # the same, with the live model's weights rounded like the export and computed in fp32; None: nothing was rounded
    )
    rounding: str = ""  # which tensors of the live model were rounded
    note: str | None = None  # what the user should know before using it


def export(
    model: DecoderModel,
    settings: ExportSettings,
    tokenizer: ChatTokenizer,
    folder: Path,
    progress: Callable[[str], None] = lambda stage: None,
) -> ExportReport:
    """Write `folder` (replacing an earlier export). LoRA: the adapter, or the merged model with `export.merge`.

    If the base of an adapter was randomly initialized, it is written to `folder/base`. CheckpointError if the logits do not
    match the live model. All ranks must call it; the first writes. `progress` is called with the current stage.
    """
    if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not is_export(folder)):
        raise CheckpointError(f"export.path: {folder} exists and was not written by an export; choose another folder")
    live = live_logits(model, settings.micro_batch_tokens)
    adapter = settings.peft is not None and not settings.merge
    rounding = None if adapter else merge_rounding(model, export_dtype(model.config, settings.precision))
    tensors = whole_tensors(model) if adapter else merged_tensors(model, rounding)
    report = None
    if live is not None:
        building = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        # on several ranks the live model computes in the training dtype, on one rank in the dtype of its weights
        as_trained = model.mesh.dense_mesh is not None or settings.peft is not None
        computed = compute_dtype(settings.precision, model.device) if as_trained else torch.float32
        writer = _Writer(
            model.config, settings, tokenizer, building, folder, live, computed, progress, model.trained_whole
        )
        report = writer.adapter(tensors) if adapter else writer.model(tensors)
        if rounding is not None:
            report = replace(report, note=rounding.describe())
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    for _ in tensors:
        pass  # gathering is collective: the other ranks send their shards
    return next(answer for answer in all_gather_objects(report, model.mesh) if answer is not None)


@torch.no_grad()
def live_logits(model: DecoderModel, full_tokens: int) -> torch.Tensor | None:
    """Logits (PROBE_TOKENS, vocab), fp32, of the probe on the first rank; None on the others, which must all call it.
    `full_tokens` as in `load_batches`."""
    ids = probe_ids(model.config)
    row = PackedRow(ids.numpy(), np.zeros(len(ids), np.uint8), np.zeros(1, np.int32), np.zeros(1, np.int16))
    batches = load_batches([row], [range(1)], model, full_tokens)
    training = model.training
    model.eval()
    hidden = forward_hidden(model, batches[0])
    model.train(training)
    logits = None
    if hidden is not None:
        hidden = gather_tokens(gather_tokens(hidden, model.mesh.tp), model.mesh.cp)[:PROBE_TOKENS]
        logits = model.logits(hidden, model.used_full_head()).float().cpu()
    if model.mesh.pp.size == 1:
        return logits if model.mesh.rank == 0 else None
    mine = logits if model.mesh.dp.rank == 0 and model.mesh.seq_rank == 0 else None
    everyone = [answer for answer in all_gather_objects(mine, model.mesh) if answer is not None]
    return everyone[0] if model.mesh.rank == 0 else None


def export_dtype(config: Any, precision: Precision | None) -> torch.dtype:
    """What exports are written in: the source model's dtype; after a random start the one that training computed in."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return config.dtype or compute_dtype(precision, device)


def probe_ids(config: Any) -> torch.Tensor:
    """The probe: fixed random ids, (PROBE_TOKENS,)."""
    return torch.randint(0, config.vocab_size, (PROBE_TOKENS,), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes into `building`, which becomes `folder`; `live`: logits of the live model, (PROBE_TOKENS, vocab)."""

    config: Any
    settings: ExportSettings
    tokenizer: ChatTokenizer
    building: Path
    folder: Path
    live: torch.Tensor
    computed: torch.dtype  # what `live` was computed in
    progress: Callable[[str], None]
    trained_whole: frozenset[str]  # parameters of the base that an adapter brings along

    def model(self, tensors: Tensors) -> ExportReport:
        from transformers import AutoModelForCausalLM

        dtype = export_dtype(self.config, self.settings.precision)
        alike = self._alike(dtype)
        count = self._write(alike.keeping(tensors) if alike else tensors, dtype, self.building)
        self.progress("loading the export with transformers to compare logits")
        rounded = alike.logits(self.settings.micro_batch_tokens) if alike else None
        del alike  # not two copies of the model at once
        reloaded = AutoModelForCausalLM.from_pretrained(self.building, dtype=torch.float32)
        return self._report(reloaded, "model", count, dtype, rounded)

    def adapter(self, tensors: Tensors) -> ExportReport:
        assert self.settings.peft is not None
        state = dict(tensors)
        adapters = {name: state.pop(name) for name in list(state) if is_adapter(name)}
        whole = {name: state[name] for name in self.trained_whole}
        base, dtype = self._base(), torch.float32
        if self.settings.source.path is None:
            dtype = export_dtype(self.config, self.settings.precision)
            self._write(iter(state.items()), dtype, self.building / "base")
        count = write_adapter(
            self.config, adapters | whole, self.settings.peft, base, self.building, self.tokenizer.new_tokens.ids
        )
        self.tokenizer.save_files(self.building)
        self.progress("loading the export to compare logits")
        rounded = None
        if alike := self._alike(dtype, adapters=True):
            for _ in alike.keeping(iter({**state, **adapters}.items())):
                pass
            rounded = alike.logits(self.settings.micro_batch_tokens)
            state = {name: alike.rounded(name, tensor) for name, tensor in state.items()}
            del alike
        reloaded = transformers_model(self.config, merge_adapter(self.config, self.building, state))
        report = self._report(reloaded, "adapter", count, dtype, rounded)
        notes = [limits(self.config, adapters), GROWN if self.tokenizer.new_tokens.ids else None]
        return replace(report, note="; ".join(note for note in notes if note) or None)

    def _base(self) -> str:
        """The adapter's base model: a hub id or an absolute path, so that it does not depend on the working directory."""
        path = self.settings.source.path
        if path is None:
            return str(self.folder.absolute() / "base")
        return str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path

    def _alike(self, dtype: torch.dtype, *, adapters: bool = False) -> "_Alike | None":
        """If the export or the live model rounds: an fp32 model for weights rounded like the export's; else None."""
        if dtype == self.computed == torch.float32:
            return None
        generic, packed = self.settings.source.generic, self.settings.packed
        model = build_model(self.config.to_dict(), "cpu", torch.float32, generic=generic, packed=packed)
        if adapters:
            assert self.settings.peft is not None
            add_adapters(model, self.settings.peft, self.tokenizer.new_tokens.ids)
        return _Alike(model, dtype)

    def _write(self, tensors: Tensors, dtype: torch.dtype, folder: Path) -> int:
        """Write weights, configs and tokenizer. Returns the number of tensors."""
        folder.mkdir(exist_ok=True)
        count = write_tensors(self._on_disk(tensors, dtype), folder)
        write_config(self.config, dtype, self.tokenizer, folder)
        generation_config(self.settings.source, self.tokenizer)[0].save_pretrained(folder)
        self.tokenizer.save_files(folder)
        return count

    def _on_disk(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        """Every tensor of the export with its name on disk, including those of the source model that are not trained."""
        written = 0
        for ours, whole in tensors:
            for name, tensor in to_disk(self.config, {ours: whole}):
                yield name, tensor.to(torch.float32 if name.rpartition(".")[2] in KEEP_FP32 else dtype)
                written += 1
                self.progress(f"{written} tensors written")
        if self.settings.source.path is not None:
            yield from carried_tensors(
                self.config, local_folder(self.settings.source.path, self.settings.source.revision)
            )

    @torch.no_grad()
    def _report(
        self, reloaded: Any, kind: str, tensors: int, dtype: torch.dtype, rounded: torch.Tensor | None
    ) -> ExportReport:
        """Compare logits with the live model's and, if weights were rounded, with the `rounded` ones. CheckpointError if they
        differ by more than rounding explains."""
        use_published_limits(reloaded)
        device = next(reloaded.parameters()).device
        exported = reloaded.eval()(input_ids=probe_ids(self.config)[None].to(device)).logits[0].float().cpu()
        largest = float(self.live.abs().max())
        max_diff = float((self.live - exported).abs().max())
        allowed = max(TOLERANCE[dtype], TOLERANCE[self.computed]) * largest
        alike = None if rounded is None else float((rounded - exported).abs().max())
        what = _rounding(dtype, self.computed)
        if alike is not None and not alike <= ALIKE * largest:
            raise self._disagrees(f"{alike:.2e} with equally rounded weights in fp32; allowed is {ALIKE * largest:.2e}")
        if not max_diff <= allowed:
            raise self._disagrees(f"{max_diff:.2e}; allowed is {allowed:.2e} ({what or 'order of summation'})")
        return ExportReport(self.folder, kind, tensors, _name(dtype), max_diff, allowed, alike, what)

    def _disagrees(self, figures: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: the export does not match the trained model: logits differ by {figures}. It is kept as "
            f"{self.folder.name}.tmp"
        )


@dataclass(frozen=True, slots=True)
class _Alike:
    """An fp32 model that is filled with weights rounded to `dtype`; adapters are not rounded."""

    model: DecoderModel
    dtype: torch.dtype

    def rounded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as the export stores it, in fp32."""
        kept = is_adapter(name) or name.rpartition(".")[2] in KEEP_FP32
        return tensor.float() if kept else tensor.to(self.dtype).float()

    def keeping(self, tensors: Tensors) -> Tensors:
        """Pass the tensors through, loading each into the model."""
        own = self.model.state_dict()
        for name, tensor in tensors:
            own[name].copy_(self.rounded(name, tensor))
            yield name, tensor

    @torch.no_grad()
    def logits(self, full_tokens: int) -> torch.Tensor | None:
        """As `live_logits`."""
        return live_logits(self.model, full_tokens)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounding(dtype: torch.dtype, computed: torch.dtype) -> str:
    parts = [f"weights rounded to {_name(dtype)}"] if dtype != torch.float32 else []
    parts += [f"the live model computing in {_name(computed)}"] if computed != torch.float32 else []
    return " and ".join(parts)
