"""Writes summary.json and prints the last lines on the console, with commands for next steps."""

import json
import platform
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from time import perf_counter, strftime

import torch

from sft_hydra import __version__
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.checkpoint.hf_export import ExportReport
from sft_hydra.data.shards import PackedSet
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.observe.console import Console
from sft_hydra.paths import RunPaths
from sft_hydra.runners.build_model import RunModel
from sft_hydra.runners.kernel_report import kernels_of
from sft_hydra.schema.config import SftConfig

LIBRARIES = ("torch", "transformers", "tokenizers", "hydra-core", "numpy", "pyarrow")


@dataclass(slots=True)
class Clock:
    """Seconds spent in each part of a run."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=perf_counter)
    date: str = field(default_factory=lambda: strftime("%Y-%m-%d %H:%M:%S"))

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - start

    def total(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self.started


def write_summary(
    paths: RunPaths,
    cfg: SftConfig,
    packed: PackedSet,
    tokenizer: ChatTokenizer,
    built: RunModel,
    clock: Clock,
    exported: ExportReport | None,
) -> None:
    """summary.json: lineage (versions, hashes), figures of the data, seconds of each part, the export."""
    summary = {
        "started": clock.date,
        "model": f"{cfg.model.name}, {built.parameters:,} parameters"
        + (f", LoRA dim {cfg.peft.dim}" if cfg.peft else "")
        + (f" on a base in {cfg.peft.quantize_base}" if cfg.peft and cfg.peft.quantize_base else ""),
        "seconds": {**{part: round(s, 2) for part, s in clock.seconds.items()}, "total": round(clock.total(), 2)},
        "lineage": {
            "sft_hydra": __version__,
            **{library: version(library) for library in LIBRARIES},
            "machine": f"{platform.machine()}, Python {platform.python_version()}, {_device(built.model)}",
            "packed data": str(packed.folder),
            "content key": packed.metadata["content_key"],
            "packed by": "another tool (template and rejected rows unknown)"
            if packed.metadata.get("foreign")
            else "sft_hydra",
            "tokenizer and template": tokenizer.fingerprint,
            "weights from": cfg.checkpoint.load or cfg.model.path or f"random start, seed {cfg.seed}",
        },
        "kernels": kernels_of(built.model),
        "data": {"sources": packed.metadata["sources"]},
        "export": {**asdict(exported), "folder": str(exported.folder)} if exported else None,
    }
    paths.summary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _device(model: DecoderModel) -> str:
    device = model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def say_next_steps(
    console: Console, cfg: SftConfig, paths: RunPaths, exported: ExportReport | None, clock: Clock
) -> None:
    """Print where the results are and commands for next steps."""
    console.say()
    console.say(f"done in {clock.total():.0f} s: {paths.root}", style="bold green")
    console.say(f"  report      {paths.report}")
    console.say(f"  metrics     {paths.metrics}")
    if exported is not None:
        library = {"model": "transformers", "adapter": "peft", "megatron": "Megatron-Core"}[exported.kind]
        console.say(f"  model       {exported.folder} ({exported.kind}, loads with {library})")
    console.say("next")
    name = paths.root.relative_to(cfg.output_dir).as_posix()
    where = ("" if name == "demo" else f" {_typed('name', name)}") + (
        "" if cfg.output_dir == "outputs" else f" {_typed('output_dir', cfg.output_dir)}"
    )
    console.say(f"  talk to it  python -m sft_hydra{where} runner=generate generate.interactive=true")
    console.say(f"  see a mask  python -m sft_hydra{where} runner=inspect inspect.html=true")
    if cfg.data.name != "demo":
        return
    console.say("  your data   python -m sft_hydra data=jsonl data.path=chats.jsonl")
    console.say(
        "  a real one  python -m sft_hydra model=qwen3_0_6b peft=lora data=jsonl data.path=chats.jsonl dry_run=true"
    )


def _typed(key: str, value: str) -> str:
    """`key=value` quoted for the shell and Hydra."""
    if re.fullmatch(r"[\w./-]+", value, re.ASCII):
        return f"{key}={value}"
    escaped = value.replace("'", "\\'")
    text = f"{key}='{escaped}'"
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'
