"""The folders that a command works in: locked first, written then. `begin(cfg)` for who starts a run, `held(cfg)` for a rank that
is started with a config on disk.

Owns that two commands never write one folder: neither that of a run, nor one that is named by hand (`checkpoint.save`,
`export.path`). A folder named by hand remembers the run that it belongs to.

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
from sft_hydra.schema.config import Runner, SftConfig

OWNER = "owner.json"  # in a folder of checkpoints; beside an export, `<name>.owner.json`


@contextmanager
def begin(cfg: SftConfig) -> Iterator[list[Lock]]:
    """Holds the folders of this command, looks again whether it goes on from what is in them, and writes its config. Yields
    the locks. ConfigError if another command is at work there."""
    with held(cfg) as locks:
        if problems := list(resume_problems(cfg)):
            raise ConfigError(*problems)
        serialize.save(cfg, RunPaths(Path(str(cfg.run_dir))).config(cfg.runner.value))
        yield locks


@contextmanager
def held(cfg: SftConfig) -> Iterator[list[Lock]]:
    """Holds the folders that this command writes."""
    with ExitStack() as stack:
        reads = cfg.runner in READING_RUNNERS
        locks = [stack.enter_context(alone_in(RunPaths(Path(str(cfg.run_dir))), reads=reads))]
        if cfg.runner is Runner.train and cfg.checkpoint.save:
            folder = checkpoint_folder(cfg)
            locks.append(stack.enter_context(_owned(cfg, "checkpoint.save", folder, folder / OWNER)))
        if cfg.export.path and (cfg.runner is Runner.export or (cfg.runner is Runner.train and cfg.export.auto)):
            folder = Path(cfg.export.path)
            locks.append(stack.enter_context(_owned(cfg, "export.path", folder, _beside(folder))))
        yield locks


@contextmanager
def alone_in(paths: RunPaths, *, reads: bool = False) -> Iterator[Lock]:
    """Holds a run's folder by its log. `reads`: commands that only read the run may be there together. ConfigError if a
    training is at work there, or anything where a training wants to begin."""
    with ExitStack() as stack:
        try:
            paths.root.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(locked(paths.log, shared=reads))
        except OSError as problem:
            raise unreadable(paths.log, problem, fix="take it away, or choose another output_dir") from None
        except BusyError:
            elsewhere = "; what it has saved can be read from elsewhere: name=<another> checkpoint.load="
            raise ConfigError(
                f"{paths.root}: another training is at work in this folder, or another command on its run; wait for it, stop "
                "it, or choose another name=..." + (f"{elsewhere}{paths.checkpoints}/step_<N>" if reads else "")
            ) from None
        yield lock


@contextmanager
def _owned(cfg: SftConfig, key: str, folder: Path, mark: Path) -> Iterator[Lock]:
    """Holds a folder that is named by hand. ConfigError if another run writes there or has written what is there."""
    if (problem := inside_another_run(cfg, key, folder)) is not None:
        raise ConfigError(problem)
    with ExitStack() as stack:
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(locked(mark))
            _take(lock, cfg, key, folder)
        except BusyError:
            raise ConfigError(
                f"{key}={folder}: another run is at work in this folder; choose another {key}, or wait for it"
            ) from None
        except OSError as problem:
            raise ConfigError(f"{key}={folder}: {mark} cannot be written {unwritable(problem)}") from None
        yield lock


def _take(lock: Lock, cfg: SftConfig, key: str, folder: Path) -> None:
    """Write into a locked mark whose folder it is. ConfigError if it is that of another run, which is still there."""
    run = Path(str(cfg.run_dir)).resolve()
    if lock.read().strip():
        owner = Path(str(read_object(lock.path, fix=f"take it away, or choose another {key}").get("run", "")))
        if owner != run and owner.is_dir() and _is_filled(folder, lock.path):
            raise ConfigError(
                f"{key}={folder}: it belongs to the run in {owner}; choose another {key} for this run, or take the folder away"
            )
    lock.write(json.dumps({"run": str(run), "config": config_digest(fixed_settings(cfg))}) + "\n")


def inside_another_run(cfg: SftConfig, key: str, folder: Path) -> str | None:
    """Why a folder named by hand cannot be taken: it is where another run has its own."""
    run, parent = Path(str(cfg.run_dir)).resolve(), folder.resolve().parent
    if parent != run and exists(RunPaths(parent).resolved):
        return f"{key}={folder}: it is in the folder of another run, {parent}; choose another {key}"
    return None


def _is_filled(folder: Path, mark: Path) -> bool:
    return folder.is_dir() and any(entry != mark for entry in folder.iterdir())


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{OWNER}")
