"""Where things are: `conf_dir()` for the shipped YAML, `RunPaths` for everything inside one run folder.

This file alone knows the names inside `outputs/`.
"""

from dataclasses import dataclass
from pathlib import Path

from sft_hydra.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent


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
