"""Exports a model in the formats of `export.formats` and reports it on the console: `export_model`."""

from pathlib import Path

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.checkpoint import state as checkpoints
from sft_hydra.checkpoint.export_megatron import export_megatron
from sft_hydra.checkpoint.hf_config import generation_config
from sft_hydra.checkpoint.hf_export import ExportReport, ExportSettings, export
from sft_hydra.config.resume_compat import checkpoint_folder
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.observe.console import Console
from sft_hydra.paths import RunPaths, read_progress
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Packing
from sft_hydra.schema.runners import ExportFormat


def report_config_changes(cfg: SftConfig, tokenizer: ChatTokenizer, console: Console) -> None:
    """Print how the generation config of exports differs from the source model's. ModelError if that cannot be read."""
    for note in generation_config(cfg.model, tokenizer)[1]:
        console.say(note, style="yellow")


def export_settings(cfg: SftConfig) -> ExportSettings:
    """The part of the config that a Hugging Face export needs."""
    packed, tokens = cfg.data.packing is not Packing.none, recipe_of(cfg).micro_batch_tokens
    return ExportSettings(cfg.model, cfg.peft, cfg.export.merge, cfg.train.precision, packed, tokens)


def export_model(model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, console: Console) -> ExportReport:
    """Write all `export.formats`. Returns the report of the Hugging Face folder, or of the only format."""
    formats = cfg.export.formats or [cfg.export.format]
    reports = []
    if ExportFormat.hf in formats:
        reports.append(_export_hf(model, cfg, tokenizer, console))
    if ExportFormat.megatron in formats:
        reports.append(_export_megatron(model, cfg, tokenizer, console, alone=len(formats) == 1))
    return reports[0]


def _export_megatron(
    model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, console: Console, *, alone: bool
) -> ExportReport:
    """Write the Megatron checkpoint to `export.path`, or beside it with two formats; else to `megatron/` of the run."""
    folder = RunPaths(Path(str(cfg.run_dir))).root / "megatron"
    if cfg.export.path:
        target = Path(cfg.export.path)
        folder = target if alone else target.with_name(target.name + "_megatron")
    last = checkpoints.latest(checkpoint_folder(cfg))
    step = read_progress(last)["state"]["step"] if last is not None else 0
    with console.work("exporting for Megatron"):
        report = export_megatron(model, cfg.model, cfg.train.precision, tokenizer, folder, step)
    console.say(
        f"export     {report.folder}: Megatron checkpoint of step {step}, {report.tensors} tensors in {report.dtype}, verified bit "
        "for bit"
    )
    if report.note:
        console.say(f"           {report.note}")
    return report


def _export_hf(model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, console: Console) -> ExportReport:
    """Write the Hugging Face folder (`export.path`, else `hf/` of the run) and print how closely its logits match."""
    assert cfg.run_dir is not None
    folder = Path(cfg.export.path) if cfg.export.path else RunPaths(Path(cfg.run_dir)).export
    with console.work("exporting") as work:
        report = export(model, export_settings(cfg), tokenizer, folder, work.stage)
    console.say(
        f"export     {report.folder}: {report.kind}, {report.tensors} tensors in {report.dtype}; reloaded with "
        f"transformers, its logits differ from the live model's by at most {report.max_diff:.1e}"
    )
    if report.alike_diff is not None:
        console.say(
            f"           this is due to rounding ({report.rounding}): with equally rounded weights in fp32 they differ by "
            f"at most {report.alike_diff:.1e}"
        )
    if report.note:
        console.say(f"           {report.note}")
    return report
