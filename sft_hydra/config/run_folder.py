"""Locks the folders that a command writes: `begin(cfg)` when a run is started, `lock_folders(cfg)` in a rank started with a config
on disk.

Two commands never write the same folder: neither a run's folder nor one set in the config (`checkpoint.save`,
`export.path`), which records the run it belongs to.

Owner of: a run's folder has one writer, and is locked before anything is written in it.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sft_hydra.config import serialize
from sft_hydra.config.resume_compat import (
    READING_RUNNERS,
    checkpoint_folder,
    config_digest,
    fixed_settings,
    resume_problems,
)
from sft_hydra.errors import ConfigError
from sft_hydra.files import exists, read_object, unreadable, unwritable
from sft_hydra.locks import BusyError, Lock, locked
from sft_hydra.paths import RunPaths
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner

OWNER = "owner.json"  # in a folder of checkpoints; beside an export, `<name>.owner.json`


@contextmanager
def begin(cfg: SftConfig) -> Iterator[list[Lock]]:
    """Lock the folders of this command, check again that it can resume from them, and write its config. Yields the locks.
    ConfigError if another command uses one of them."""
    with lock_folders(cfg) as locks:
        if problems := list(resume_problems(cfg)):
            raise ConfigError(*problems)
        serialize.save(cfg, RunPaths(Path(str(cfg.run_dir))).config(cfg.runner.value))
        yield locks


@contextmanager
def lock_folders(cfg: SftConfig) -> Iterator[list[Lock]]:
    """Lock the folders that this command writes. ConfigError if another command uses one of them."""
    with ExitStack() as stack:
        reads = cfg.runner in READING_RUNNERS
        locks = [stack.enter_context(lock_run(RunPaths(Path(str(cfg.run_dir))), reads=reads))]
        if cfg.runner is Runner.train and cfg.checkpoint.save:
            folder = checkpoint_folder(cfg)
            locks.append(stack.enter_context(_owned(cfg, "checkpoint.save", folder, folder / OWNER)))
        if cfg.export.path and (cfg.runner is Runner.export or (cfg.runner is Runner.train and cfg.export.auto)):
            folder = Path(cfg.export.path)
            locks.append(stack.enter_context(_owned(cfg, "export.path", folder, _beside(folder))))
        yield locks


@contextmanager
def lock_run(paths: RunPaths, *, reads: bool = False) -> Iterator[Lock]:
    """Lock a run's folder through its log file. `reads`: shared with other commands that only read the run. ConfigError if a
    training uses the folder, or, without `reads`, any command."""
    with ExitStack() as stack:
        try:
            paths.root.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(locked(paths.log, shared=reads))
        except OSError as problem:
            raise unreadable(paths.log, problem, fix="delete it, or choose another output_dir") from None
        except BusyError:
            elsewhere = "; to read its checkpoints meanwhile, use name=<another> checkpoint.load="
            raise ConfigError(
                f"{paths.root}: this folder is in use by another training or by a command on its run; wait for it, stop "
                "it, or choose another name=..." + (f"{elsewhere}{paths.checkpoints}/step_<N>" if reads else "")
            ) from None
        yield lock


@contextmanager
def _owned(cfg: SftConfig, key: str, folder: Path, mark: Path) -> Iterator[Lock]:
    """Lock a folder set in the config. ConfigError if another run writes to it or has written its content."""
    if (problem := inside_another_run(cfg, key, folder)) is not None:
        raise ConfigError(problem)
    with ExitStack() as stack:
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(locked(mark))
            _take(lock, cfg, key, folder)
        except BusyError:
            raise ConfigError(
                f"{key}={folder}: this folder is in use by another run; choose another {key}, or wait for it"
            ) from None
        except OSError as problem:
            raise ConfigError(f"{key}={folder}: {mark} cannot be written {unwritable(problem)}") from None
        yield lock


def _take(lock: Lock, cfg: SftConfig, key: str, folder: Path) -> None:
    """Record the owner of the folder in its locked owner file. ConfigError if another existing run owns it."""
    run = Path(str(cfg.run_dir)).resolve()
    if lock.read().strip():
        owner = Path(str(read_object(lock.path, fix=f"delete it, or choose another {key}").get("run", "")))
        if owner != run and owner.is_dir() and _is_filled(folder, lock.path):
            raise ConfigError(
                f"{key}={folder}: it belongs to the run in {owner}; choose another {key} for this run, or delete the folder"
            )
    lock.write(json.dumps({"run": str(run), "config": config_digest(fixed_settings(cfg))}) + "\n")


def inside_another_run(cfg: SftConfig, key: str, folder: Path) -> str | None:
    """The message if a folder set in the config lies inside the folder of another run; else None."""
    run, parent = Path(str(cfg.run_dir)).resolve(), folder.resolve().parent
    if parent != run and exists(RunPaths(parent).resolved):
        return f"{key}={folder}: it is inside the folder of another run, {parent}; choose another {key}"
    return None


def _is_filled(folder: Path, mark: Path) -> bool:
    return folder.is_dir() and any(entry != mark for entry in folder.iterdir())


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{OWNER}")
