"""From argv to a run: compose (Hydra), resolve (rules), then plan it or run it. `python -m sft_hydra` starts here.

Imports no torch: a wrong command is refused, and a job is submitted, before that second is spent.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from sft_hydra import __version__
from sft_hydra.config import saved
from sft_hydra.config.completion import complete
from sft_hydra.config.compose import compose
from sft_hydra.config.resolve import resolve
from sft_hydra.errors import UserError
from sft_hydra.paths import RunPaths


def main() -> None:
    """Exit codes: 0 done, 2 the user can put it right (all problems are listed), 1 anything else."""
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(error.describe(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on from the last checkpoint.")


def command(argv: Sequence[str]) -> None:
    if "--version" in argv:
        print(f"sft_hydra {__version__}")
        return
    if "--shell-completion" in argv or "-sc" in argv:
        complete(argv)
        return
    composed = compose(argv)
    if composed is None:  # Hydra has answered (--help, --cfg job), or our launcher has run a sweep
        return
    cfg = resolve(composed.config, composed.overrides, launcher=composed.launcher)
    if cfg.dry_run:
        from sft_hydra.launch.plan import describe  # only here: a run does not need it

        print(describe(cfg))
        return
    saved.save(cfg, RunPaths(Path(str(cfg.run_dir))).config(cfg.runner.value))
    importlib.import_module(f"sft_hydra.runners.{cfg.runner.value}").run(cfg)
