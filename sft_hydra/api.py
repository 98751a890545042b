"""The Python API: what a program may import from sft_hydra. Its names and their meaning are stable between minor versions.

    from sft_hydra.api import compose, train

    run_folder = train(compose("model=qwen3_0_6b", "peft=lora", "data=jsonl", "data.path=chats.jsonl"))

Everything else in the package may change without notice. Every error that the user can fix is a
`sft_hydra.errors.UserError`, whose `describe()` is what the command line prints. Importing this loads no torch.
"""

from dataclasses import replace
from pathlib import Path

from sft_hydra.config.compose import compose_overrides
from sft_hydra.config.resolve import resolve
from sft_hydra.config.run_folder import begin
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.prepare import open_or_prepare
from sft_hydra.errors import ConfigError, UserError
from sft_hydra.launch.dry_run import describe
from sft_hydra.launch.local_ranks import run_here
from sft_hydra.paths import RunPaths
from sft_hydra.planning.auto_parallel import with_auto_parallel
from sft_hydra.planning.topology import ranks_of_runner
from sft_hydra.schema.cluster import ClusterKind
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner
from sft_hydra.worker import run_rank

__all__ = ["compose", "export", "load_packed", "plan", "prepare", "train"]


def compose(*overrides: str) -> SftConfig:
    """The config that `python -m sft_hydra <overrides>` would run. Raises ConfigError with all problems at once."""
    composed = compose_overrides(overrides)
    return resolve(composed.config, composed.overrides, launcher=composed.launcher)


def plan(cfg: SftConfig) -> str:
    """The text that `dry_run=true` prints: data, layout, memory per rank, steps. Starts and writes nothing."""
    return describe(cfg)


def prepare(cfg: SftConfig) -> PackedSet:
    """The packed set of `cfg`: an existing one, or prepared now. MissingPackedDataError with `data.prepare=never`."""
    return open_or_prepare(cfg)


def train(cfg: SftConfig) -> Path:
    """Train on this machine to the end, resuming from the last checkpoint; returns the run's folder. A single rank runs in this
    process, several in child processes. UserError; ConfigError with `cluster=slurm`."""
    return _run(replace(cfg, runner=Runner.train))


def export(cfg: SftConfig) -> Path:
    """Write the run's latest checkpoint as a Hugging Face folder, verified; returns that folder. Raises UserError."""
    root = _run(replace(cfg, runner=Runner.export))
    return Path(cfg.export.path) if cfg.export.path else RunPaths(root).export


def load_packed(folder: Path | str) -> PackedSet:
    """The packed set in a folder. `row(split, index)` is one packed row in numpy, `num_rows(split)` their number,
    `metadata` describes the sources. MissingPackedDataError or DataError."""
    return PackedSet.open(folder)


def _run(cfg: SftConfig) -> Path:
    if cfg.cluster.kind is ClusterKind.slurm:
        raise ConfigError(
            "cluster=slurm is not supported in Python; submit the job on the command line: python -m sft_hydra cluster=slurm ..."
        )
    if cfg.cluster.nodes > 1:
        raise ConfigError(
            f"cluster.nodes={cfg.cluster.nodes} is not supported in Python, which trains on this machine only; set cluster.nodes=1"
        )
    root = Path(str(cfg.run_dir))
    if ranks_of_runner(cfg) == (1, 1):
        with begin(cfg):
            run_rank(cfg)
    elif code := run_here(with_auto_parallel(cfg)):
        raise UserError(f"a rank ended with exit code {code}; its last output is above and in {RunPaths(root).log}")
    return root
