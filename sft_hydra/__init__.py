"""Supervised fine-tuning of large language models, composed with Hydra: packed, exact, fast."""

__version__ = "0.1.0"
