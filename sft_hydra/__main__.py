"""`python -m sft_hydra` is the console script: see cli.py."""

from sft_hydra.cli import main

if __name__ == "__main__":
    main()
