"""`python -m sft_hydra.worker <resolved.yaml>`: runs what was resolved before. Jobs of sweeps are started so; Hydra is not."""

import importlib
import sys
from pathlib import Path

from sft_hydra.config import saved
from sft_hydra.errors import ConfigError, UserError


def main() -> None:
    """Exit codes as in cli.py."""
    try:
        if len(sys.argv) != 2:
            raise ConfigError("usage: python -m sft_hydra.worker <resolved.yaml>")
        cfg = saved.load(Path(sys.argv[1]))
        importlib.import_module(f"sft_hydra.runners.{cfg.runner.value}").run(cfg)
    except UserError as error:
        print(error.describe(), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


if __name__ == "__main__":
    main()
