"""`runner=inspect`: what is supervised, token by token."""

from sft_hydra.runners.inspect.runner import run

__all__ = ["run"]
