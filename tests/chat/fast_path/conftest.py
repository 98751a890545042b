import pytest

from sft_hydra.chat.fast_path import render_cache


@pytest.fixture(autouse=True)
def _few_rows_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests here have few rows, of which the cache makes no entries otherwise."""
    monkeypatch.setattr(render_cache, "START", 0)
