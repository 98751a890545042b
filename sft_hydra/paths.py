"""Where things are: `conf_dir()` for the shipped YAML, `RunPaths` for everything inside one run folder.

This file alone knows the names inside `outputs/`.

Owner of: file names inside a run's folder.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hydra.errors import CheckpointError, ConfigError

PACKAGE = Path(__file__).resolve().parent
COMPLETE, STATE = "COMPLETE", "state.json"  # in every checkpoint: the mark that it counts, and where training stood
CHECKPOINT_FORMAT = 1


def conf_dir() -> Path:
    """Folder of the shipped config tree: inside the package in a wheel, beside it in a checkout."""
    candidates = (PACKAGE / "conf", PACKAGE.parent / "conf")
    for folder in candidates:
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no config.yaml in {candidates[0]} or {candidates[1]}: the installation is incomplete")


def data_root(output_dir: str) -> Path:
    """Folder that holds all packed sets made by this machine's runs, one per content key."""
    return Path(output_dir) / "data"


def complete_checkpoints(folder: Path) -> list[Path]:
    """`step_<N>` in it that are whole, oldest first."""
    steps = [path for path in folder.glob("step_*") if path.suffix != ".tmp" and (path / COMPLETE).is_file()]
    return sorted(steps, key=lambda path: int(path.name.removeprefix("step_")))


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a user means by a path: a `step_<N>`, a folder of them, or a run's folder."""
    path = Path(path).expanduser()
    if (path / COMPLETE).is_file():
        return path
    for folder in (path, path / "checkpoints"):
        if steps := complete_checkpoints(folder):
            return steps[-1]
    exported = "; this is a model folder: give it as model.path" if (path / "config.json").is_file() else ""
    raise CheckpointError(
        f"{path} is not a complete checkpoint and holds none (a folder step_<N> with a file {COMPLETE}){exported}"
    )


def state_digest(checkpoint: Path) -> str:
    """sha256 of a checkpoint's `state.json`; stands in its mark."""
    return hashlib.sha256((checkpoint / STATE).read_bytes()).hexdigest()


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What `state.json` says: `state` (as TrainState), `adapters_only`, `optimizer`, the `sizes` and `rates` in use, and
    the `metrics` of that moment."""
    try:
        progress: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / STATE} cannot be read: {error}") from error
    mark = checkpoint / COMPLETE
    if mark.is_file() and (written := mark.read_bytes()) and written != state_digest(checkpoint).encode():
        raise CheckpointError(f"{checkpoint / STATE} is not what was written: its checksum differs")
    found = progress.get("format")
    if found != CHECKPOINT_FORMAT:
        raise CheckpointError(f"{checkpoint} has format {found}; this version reads format {CHECKPOINT_FORMAT}")
    return progress


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Files of one run. `root` is `outputs/<name>` or, for a job of a sweep, `outputs/<name>/<label>`."""

    root: Path

    @property
    def resolved(self) -> Path:
        """The config of the training: what later runs in this folder continue or read."""
        return self.root / "resolved.yaml"

    def config(self, runner: str) -> Path:
        """The config of one command; a runner that only reads the run never touches the training's."""
        return self.resolved if runner == "train" else self.root / f"{runner}.yaml"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        return self.root / "hf"

    @property
    def trackers(self) -> Path:
        """Ids of this run in the trackers."""
        return self.root / "trackers.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

    @property
    def inspector(self) -> Path:
        """The packed set on one page, from `runner=inspect inspect.html=true`."""
        return self.root / "inspect.html"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def answers(self) -> Path:
        """Folder: what the model answered in benchmarks, a folder per moment (`before`, `training`, ...), a file per task."""
        return self.root / "answers"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples.json"

    @property
    def ranks(self) -> Path:
        """Folder: what ranks other than 0 print, and the failure of the first rank that failed."""
        return self.root / "ranks"

    @property
    def stopped(self) -> Path:
        """There while the last attempt ended at a signal, with a checkpoint, before its time."""
        return self.root / "stopped"

    @property
    def job(self) -> Path:
        """The Slurm job that was submitted last for this run."""
        return self.root / "job.json"

    @property
    def slurm(self) -> Path:
        """Folder: batch script, output and exit code of the run's Slurm jobs."""
        return self.root / "slurm"
