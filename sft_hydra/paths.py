"""File locations: `conf_dir()` for the shipped YAML, `RunPaths` for everything inside a run's folder.

All names of files inside `outputs/` are defined here.

Owner of: file names inside a run's folder.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hydra.errors import CheckpointError, ConfigError
from sft_hydra.files import exists, read_object, read_text, unreadable

PACKAGE = Path(__file__).resolve().parent
COMPLETE, STATE = "COMPLETE", "state.json"  # in every checkpoint: the marker of a complete one, and training progress
CHECKPOINT_FORMAT = 1
STEP = re.compile(r"step_(0|[1-9][0-9]*)")
WITHOUT = "delete its folder to resume from the previous checkpoint"


def conf_dir() -> Path:
    """Folder of the shipped config tree: inside the package in a wheel, beside it in a checkout. ConfigError if missing."""
    candidates = (PACKAGE / "conf", PACKAGE.parent / "conf")
    for folder in candidates:
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no config.yaml in {candidates[0]} or {candidates[1]}: the installation is incomplete")


def data_root(output_dir: str) -> Path:
    """Folder of all packed sets of the runs in `output_dir`, one per content key."""
    return Path(output_dir) / "data"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints `step_<N>` in a folder, oldest first; folders with other names are ignored. CheckpointError if a
    COMPLETE file cannot be read."""
    steps = [(int(found[1]), path) for path in folder.glob("step_*") if (found := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(steps) if is_complete(path)]


def is_complete(checkpoint: Path) -> bool:
    """Whether it has a COMPLETE file that is not empty (a crash may leave an empty one)."""
    mark = checkpoint / COMPLETE
    return exists(mark) and bool(read_text(mark, error=CheckpointError, fix=WITHOUT).strip())


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint of a path: a `step_<N>`, or the latest in a folder of checkpoints or a run's folder. CheckpointError if
    there is no complete one."""
    path = Path(path).expanduser()
    if is_complete(path):
        return path
    for folder in (path, path / "checkpoints"):
        if steps := complete_checkpoints(folder):
            return steps[-1]
    exported = "; this is a model folder: set model.path to it" if (path / "config.json").is_file() else ""
    raise CheckpointError(
        f"{path} is not a complete checkpoint and holds none (a folder step_<N> with a file {COMPLETE}){exported}"
    )


def state_digest(checkpoint: Path) -> str:
    """sha256 of a checkpoint's `state.json`, stored in its COMPLETE file."""
    return hashlib.sha256((checkpoint / STATE).read_bytes()).hexdigest()


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """The content of `state.json`: `state` (as TrainState), `adapters_only`, `optimizer`, the `sizes` and learning `rates`, the
    `metrics` at that step, and its origin: `config`, `data`, `base`. CheckpointError if it is damaged."""
    file, mark = checkpoint / STATE, checkpoint / COMPLETE
    progress = read_object(file, error=CheckpointError, fix=WITHOUT)
    if exists(mark):
        written = read_text(mark, error=CheckpointError, fix=WITHOUT).strip()
        if written and written != state_digest(checkpoint):
            raise CheckpointError(f"{file} is corrupt: its checksum differs from that in {mark}; {WITHOUT}")
    if progress.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{checkpoint} has format {progress.get('format')}; this version reads format {CHECKPOINT_FORMAT}"
        )
    if problem := _problem(checkpoint, progress):
        raise unreadable(file, problem, CheckpointError, WITHOUT)
    return progress


def _problem(checkpoint: Path, progress: dict[str, Any]) -> str | None:
    """What is wrong with the content of a checkpoint's state.json; None if nothing is."""
    state = progress.get("state")
    kinds = {"config": dict, "sizes": dict, "rates": dict, "metrics": dict, "optimizer": list, "adapters_only": bool}
    wrong = [key for key, kind in kinds.items() if not isinstance(progress.get(key, kind()), kind)]
    if wrong or not isinstance(state, dict) or not isinstance(state.get("step"), int):
        return f"invalid {', '.join(wrong) or 'state'}"
    found = STEP.fullmatch(checkpoint.name)
    if found and int(found[1]) != state["step"]:
        return f"it is of step {state['step']}, but its folder is named {checkpoint.name}; rename the folder"
    return None


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Files of one run. `root` is `outputs/<name>` or, for a job of a sweep, `outputs/<name>/<label>`."""

    root: Path

    @property
    def resolved(self) -> Path:
        """The resolved config of the training run."""
        return self.root / "resolved.yaml"

    def config(self, runner: str) -> Path:
        """The resolved config of a command; only runner=train writes `resolved.yaml`."""
        return self.resolved if runner == "train" else self.root / f"{runner}.yaml"

    @property
    def log(self) -> Path:
        """Console output of the run."""
        return self.root / "log.txt"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object per step."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, `step_<N>` each."""
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """Folder of the exported Hugging Face model."""
        return self.root / "hf"

    @property
    def trackers(self) -> Path:
        """Ids of this run at the tracking services."""
        return self.root / "trackers.json"

    @property
    def report(self) -> Path:
        """Report of the run."""
        return self.root / "report.html"

    @property
    def curves(self) -> Path:
        """Charts of the report as a PNG."""
        return self.root / "curves.png"

    @property
    def inspector(self) -> Path:
        """Inspector page of the packed set, from `runner=inspect inspect.html=true`."""
        return self.root / "inspect.html"

    @property
    def evaluation(self) -> Path:
        """Evaluation results."""
        return self.root / "evaluation.json"

    @property
    def answers(self) -> Path:
        """Folder of benchmark answers: a folder per moment (`before`, `training`, ...), a file per task."""
        return self.root / "answers"

    @property
    def summary(self) -> Path:
        """Data, versions, hashes and times of the run."""
        return self.root / "summary.json"

    @property
    def samples(self) -> Path:
        """Answers to `eval.samples`."""
        return self.root / "samples.json"

    @property
    def ranks(self) -> Path:
        """Folder: output of ranks other than 0, and the error of the first rank that failed."""
        return self.root / "ranks"

    @property
    def stopped(self) -> Path:
        """Exists if the last attempt was stopped by a signal after saving a checkpoint."""
        return self.root / "stopped"

    @property
    def job(self) -> Path:
        """The last submitted Slurm job of this run."""
        return self.root / "job.json"

    @property
    def slurm(self) -> Path:
        """Folder: batch script, output and exit code of the run's Slurm jobs."""
        return self.root / "slurm"
