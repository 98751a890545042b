"""Supervised fine-tuning of large language models, composed with Hydra: packed, exact, fast."""

__version__ = "0.2.0"
