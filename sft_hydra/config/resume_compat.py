"""Which settings may change when a run is resumed. Settings that would make the losses differ from those of an uninterrupted
run may not; the message shows the difference."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sft_hydra.config import serialize
from sft_hydra.files import exists
from sft_hydra.paths import RunPaths, complete_checkpoints, read_progress
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner

MAY_CHANGE = (
    "runner", "name", "output_dir", "run_dir", "dry_run", "device", "cluster", "parallel", "logger", "eval", "generate",
    "export", "inspect", "checkpoint.interval", "checkpoint.keep_last", "checkpoint.keep_best", "checkpoint.async_save",
    "train.micro_batch_size", "train.recompute",
    "train.cpu_offload", "train.compile", "train.deterministic", "train.log_interval", "train.num_threads", "data.prepare", "data.force",
    "data.num_workers",
)  # fmt: skip
MAY_GROW = ("train.train_iters", "train.epochs", "train.train_samples", "train.early_stopping.patience")
READING_RUNNERS = (Runner.generate, Runner.evaluate, Runner.export, Runner.inspect)
# Keys that a reading runner takes from its own command: always, and if typed. All others are those of the run.
ALWAYS_OWN = ("runner", "name", "output_dir", "run_dir", "dry_run", "cluster", "parallel", "generate", "inspect")
OWN_IF_TYPED = ("device", "logger", "eval", "export")


def resume_problems(cfg: SftConfig) -> Iterator[str]:
    """Messages why this training cannot resume in its folder; none without a checkpoint. Compared are the config in the newest
    checkpoint and that of the last command, which has the length of training."""
    paths = RunPaths(Path(str(cfg.run_dir)))
    if cfg.runner is not Runner.train:
        return
    changes: dict[str, str] = {}
    steps = complete_checkpoints(checkpoint_folder(cfg))
    if steps:
        there = read_progress(steps[-1]).get("config", {}).get("settings", {})
        here = fixed_settings(cfg)
        if there and config_digest(there) != config_digest(here):
            changes |= {
                key: f"{key}: {_show(there.get(key))} there, {_show(here.get(key))} here"
                for key in dict.fromkeys([*there, *here])
                if there.get(key) != here.get(key)
            }
    if exists(paths.resolved):
        before = serialize.load(paths.resolved)
        if steps or any(checkpoint_folder(before).glob("step_*")):
            changes |= {
                key: f"{key}: {_show(there)} there, {_show(here)} here"
                + (" (may only grow)" if key in MAY_GROW else "")
                for key, there, here in differences(before, cfg)
                if not _within(key, MAY_CHANGE) and not (key in MAY_GROW and _grows(there, here))
            }
    if changes:
        place = (
            paths.root if checkpoint_folder(cfg).resolve() == paths.checkpoints.resolve() else checkpoint_folder(cfg)
        )
        yield (
            f"{place} holds a run that this command cannot resume, because these settings differ:\n"
            + "\n".join(f"    {change}" for change in changes.values())
            + "\n    choose another name=... for a new run, or use the settings of the existing run"
        )


def checkpoint_folder(cfg: SftConfig) -> Path:
    """Folder of this run's checkpoints."""
    return Path(cfg.checkpoint.save) if cfg.checkpoint.save else RunPaths(Path(str(cfg.run_dir))).checkpoints


def fixed_settings(cfg: SftConfig) -> dict[str, Any]:
    """Dotted key -> JSON value of all settings that may not change when a run is resumed."""
    flat = {key: value for key, value in serialize.flatten(cfg).items() if not _within(key, (*MAY_CHANGE, *MAY_GROW))}
    plain: dict[str, Any] = json.loads(json.dumps(flat, default=lambda value: getattr(value, "value", str(value))))
    return plain


def config_digest(settings: dict[str, Any]) -> str:
    """sha256 of the settings; null and a missing key are equal."""
    text = json.dumps({key: value for key, value in settings.items() if value is not None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def inherit_run_config(cfg: SftConfig, typed: Sequence[str]) -> tuple[SftConfig, list[str]]:
    """The config of a reading runner, with the settings of the run in its folder: `runner=generate name=mine` is enough.

    `typed`: the keys of the command line. Also returns a message for each that contradicts the run.
    """
    paths = RunPaths(Path(str(cfg.run_dir)))
    if cfg.runner not in READING_RUNNERS or not exists(paths.resolved):
        return cfg, []
    run = serialize.load(paths.resolved)
    problems = [
        f"{key}: {_show(here)}, but the run in {paths.root} has {_show(there)}; remove it, or choose another name=..."
        for key, there, here in differences(run, cfg)
        if _within(key, typed) and not _within(key, (*ALWAYS_OWN, *OWN_IF_TYPED))
    ]
    for key in (*ALWAYS_OWN, *(key for key in typed if _within(key, OWN_IF_TYPED))):
        _copy_value(key, cfg, run)
    return run, problems


def differences(before: SftConfig, now: SftConfig) -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of all keys in which two configs differ; a missing key counts as null."""
    there, here = serialize.flatten(before), serialize.flatten(now)
    for key in dict.fromkeys([*there, *here]):
        if there.get(key) != here.get(key):
            yield key, there.get(key), here.get(key)


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _copy_value(key: str, source: Any, target: Any) -> None:
    """Set `key` of one config to the other's value; a mapping is replaced as a whole."""
    name, _, rest = key.partition(".")
    if rest and dataclasses.is_dataclass(getattr(source, name)) and dataclasses.is_dataclass(getattr(target, name)):
        _copy_value(rest, getattr(source, name), getattr(target, name))
    else:
        setattr(target, name, getattr(source, name))


def _grows(there: Any, here: Any) -> bool:
    """-1 (one epoch) and null (length set by another key) cannot be compared in advance."""
    return there is None or here is None or -1 in (there, here) or here >= there


def _show(value: Any) -> str:
    return "null" if value is None else str(getattr(value, "value", value))
