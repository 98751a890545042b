"""Random streams by name: what is drawn for a parameter depends on (seed, name) and on nothing that came before."""

import hashlib

import torch


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for the values called `name`."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
