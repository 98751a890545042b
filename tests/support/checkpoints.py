"""The checkpoint that a test loads."""

from pathlib import Path

from sft_hydra.checkpoint.state import latest


def latest_in(folder: Path) -> Path:
    """The newest complete checkpoint in a folder that has one."""
    found = latest(folder)
    assert found is not None, f"no complete checkpoint in {folder}"
    return found
