"""`python -m sft_hydra.worker <resolved.yaml>`: runs one rank of a resolved config, without Hydra. Started by srun, torchrun,
our launchers and jobs of sweeps. cli.py runs the only rank of a local run with `run_rank` in its process."""

import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sft_hydra.config import serialize
from sft_hydra.errors import ConfigError, UserError
from sft_hydra.paths import RunPaths
from sft_hydra.planning.topology import ranks_of_runner
from sft_hydra.process import signals
from sft_hydra.process.rank import rank_output, this_rank
from sft_hydra.schema.config import SftConfig


def main() -> None:
    """Entry point of `sft-hydra-worker`."""
    code = exit_code(_command)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and this_rank().world_size > 1:
        os._exit(code)  # destroying a process group with dead ranks can hang
    sys.exit(code)


def exit_code(command: Callable[[], int]) -> int:
    """Run a command that returns an exit code: 0 success, 2 an error the user can fix (all problems are listed), 1 anything
    else. A bug keeps its traceback; with several ranks, the first rank that failed has printed it."""
    rank = this_rank()
    try:
        return command()
    except UserError as error:
        if rank.world_size == 1:  # otherwise rank_output has printed it
            print(error.describe(), file=sys.stderr)
        return 2
    except signals.StoppedError as stopped:
        if rank.rank == 0:
            print(stopped, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if rank.rank == 0:
            print(
                "Interrupted. Rerun the same command to resume from the last checkpoint; prepared data is reused.",
                file=sys.stderr,
            )
        return 1
    except Exception:
        if rank.world_size == 1:
            raise
        return 1


def run_rank(cfg: SftConfig) -> None:
    """Run the runner in this process, as the rank of the environment. ConfigError if the number of ranks is wrong."""
    assert cfg.run_dir is not None
    rank, paths = this_rank(), RunPaths(Path(cfg.run_dir))
    signals.install_handlers()
    started, expected = rank.world_size, math.prod(ranks_of_runner(cfg))
    if started != expected:
        raise ConfigError(
            f"{started} ranks were started, but cluster.nodes={cfg.cluster.nodes} and cluster.gpus_per_node="
            f"{cfg.cluster.gpus_per_node} of this run need {expected} for runner={cfg.runner.value}; start {expected} ranks"
        )
    runner = importlib.import_module(f"sft_hydra.runners.{cfg.runner.value}")
    try:
        runner.run(cfg)
    except signals.StoppedError:
        if rank.rank == 0:
            paths.stopped.touch()  # the batch script checks it to requeue the job
        raise


def _command() -> int:
    if len(sys.argv) != 2:
        raise ConfigError("usage: python -m sft_hydra.worker <resolved.yaml>")
    config = Path(sys.argv[1])
    rank = this_rank()
    if rank.world_size == 1:
        run_rank(serialize.load(config))
        return 0
    with rank_output(rank, RunPaths(config.parent)):
        run_rank(serialize.load(config))
    return 0


if __name__ == "__main__":
    main()
