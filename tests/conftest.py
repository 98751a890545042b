"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; read when triton is imported

REPO = Path(__file__).resolve().parent.parent


def _shared_dir() -> Path | None:
    for candidate in (os.environ.get("SFT_HYDRA_SHARED"), REPO.parent / "shared"):
        if candidate and (Path(candidate) / "assets").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real tokenizers, chat files and goldens; the test skips where it is absent."""
    folder = _shared_dir()
    if folder is None:
        pytest.skip("needs the folder with real tokenizers and chat data (SFT_HYDRA_SHARED)")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO
