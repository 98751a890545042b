"""Random generators by name: the values of a parameter depend only on (seed, name)."""

import hashlib

import torch


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator seeded with (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
