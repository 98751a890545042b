"""Fixtures for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def _shared_dir() -> Path | None:
    for candidate in (os.environ.get("SFT_HYDRA_SHARED"), REPO.parent / "shared"):
        if candidate and (Path(candidate) / "assets").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is known of tokenizers comes from this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
