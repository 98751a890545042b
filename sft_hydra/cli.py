"""The command line `python -m sft_hydra`: composes the config (Hydra), resolves it (rules), then plans or starts the run.

Does not import torch, so that errors are reported and jobs submitted without that delay.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sft_hydra import __version__
from sft_hydra.config.completion import complete
from sft_hydra.config.compose import compose
from sft_hydra.config.resolve import resolve
from sft_hydra.config.run_folder import begin
from sft_hydra.errors import ClusterError
from sft_hydra.launch.job import refuse_busy
from sft_hydra.launch.local_ranks import run_here
from sft_hydra.observe.terminal import outlive_terminal
from sft_hydra.planning.auto_parallel import with_auto_parallel
from sft_hydra.planning.topology import ranks_of_runner
from sft_hydra.process.rank import this_rank
from sft_hydra.worker import end_process, exit_code, run_rank


def main() -> None:
    """Exit codes: 0 success, 2 an error that the user can fix (all problems are listed), 1 any other error."""
    outlive_terminal()
    try:
        several = this_rank().world_size > 1
    except ClusterError as error:
        print(error.describe(), file=sys.stderr)
        sys.exit(2)
    if several:
        sys.exit(
            "Start this command once; it starts the ranks (cluster.gpus_per_node=...). To start ranks with torchrun, use a "
            "resolved config: torchrun -m sft_hydra.worker <resolved.yaml>"
        )
    end_process(exit_code(lambda: command(sys.argv[1:])))


def command(argv: Sequence[str]) -> int:
    """Run a command line; returns its exit code. UserError for errors that the user can fix."""
    if "--version" in argv:
        print(f"sft_hydra {__version__}")
        return 0
    if "--shell-completion" in argv or "-sc" in argv:
        complete(argv)
        return 0
    composed = compose(argv)
    if composed is None:  # Hydra printed its output (--help, --cfg job), or our launcher ran a sweep
        return 0
    cfg = resolve(composed.config, composed.overrides, launcher=composed.launcher)
    if cfg.dry_run:
        from sft_hydra.launch.dry_run import describe  # lazy: only for dry runs

        print(describe(cfg))
        return 0
    if shutil.which("squeue") is not None:  # a pending job does not hold a lock
        refuse_busy([Path(str(cfg.run_dir))])
    if ranks_of_runner(cfg) != (1, 1):
        return run_here(with_auto_parallel(cfg))
    with begin(cfg):
        run_rank(cfg)
    return 0
