"""`python -m sft_hydra.worker <resolved.yaml>`: runs one rank of a resolved config, without Hydra. Started by srun, torchrun,
our launchers and jobs of sweeps. cli.py runs a single local rank in its own process with `run_rank`."""

import importlib
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from sft_hydra.config import serialize
from sft_hydra.config.run_folder import lock_folders
from sft_hydra.errors import ConfigError, UserError
from sft_hydra.observe.console import Console
from sft_hydra.observe.terminal import outlive_terminal
from sft_hydra.paths import RunPaths
from sft_hydra.planning.topology import ranks_of_runner
from sft_hydra.process import signals
from sft_hydra.process.allocator import use_expandable_segments
from sft_hydra.process.lifeline import live_with_parent, locks_handed_over
from sft_hydra.process.rank import rank_output, this_rank
from sft_hydra.process.third_party_logs import quiet_third_party_logs
from sft_hydra.schema.config import SftConfig


def main() -> None:
    outlive_terminal()
    end_process(exit_code(_command))


def end_process(code: int) -> NoReturn:
    """Exit with `code`. Destroys the process group first, because torch's gloo threads can abort an interpreter that shuts down
    with one: a rank that had succeeded would be reported as killed (pytorch#190489)."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code and "RANK" in os.environ:
        os._exit(code)  # destroying a process group with dead ranks can hang
    if "torch.distributed" in sys.modules:
        importlib.import_module("sft_hydra.parallel.rendezvous").stop_process_group()
    sys.exit(code)


def exit_code(command: Callable[[], int]) -> int:
    """Run a command and return its exit code: 0 success, 2 an error that the user can fix (all problems are listed), 1 any other
    error, with a traceback. With several ranks, the first that fails reports the error."""
    try:
        rank = this_rank()
    except UserError as error:  # the rank is unknown
        return _report(error)
    try:
        return command()
    except UserError as error:
        return _report(error) if rank.world_size == 1 else 2  # otherwise the rank has reported it
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


def _report(error: UserError) -> int:
    print(error.describe(), file=sys.stderr)
    return 2


def run_rank(cfg: SftConfig) -> None:
    """Run the runner in this process, as the rank of the environment. ConfigError if the number of ranks is wrong."""
    assert cfg.run_dir is not None
    rank = this_rank()
    started, expected = rank.world_size, math.prod(ranks_of_runner(cfg))
    if started != expected:
        raise ConfigError(
            f"{started} ranks were started, but cluster.nodes={cfg.cluster.nodes} and cluster.gpus_per_node="
            f"{cfg.cluster.gpus_per_node} of this run need {expected} for runner={cfg.runner.value}; start {expected} ranks"
        )
    use_expandable_segments()
    quiet_third_party_logs()
    with signals.listening():
        with Console(speak=rank.rank == 0) as console, console.work("importing torch and transformers"):
            runner = importlib.import_module(f"sft_hydra.runners.{cfg.runner.value}")
        try:
            runner.run(cfg)
        except signals.StoppedError:
            if rank.rank == 0:
                RunPaths(Path(cfg.run_dir)).stopped.touch()  # the batch script checks for it
            raise


def _command() -> int:
    if len(sys.argv) != 2:
        raise ConfigError("usage: python -m sft_hydra.worker <resolved.yaml>")
    config = Path(sys.argv[1])
    rank = this_rank()
    live_with_parent()
    output = rank_output(rank, RunPaths(config.parent)) if rank.world_size > 1 else nullcontext()
    with output:
        cfg = serialize.load(config)
        with lock_folders(cfg) if rank.rank == 0 and not locks_handed_over() else nullcontext():
            run_rank(cfg)
    return 0


if __name__ == "__main__":
    main()
