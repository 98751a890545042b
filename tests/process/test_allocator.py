"""The allocator's settings are ours only where the user has none."""

import os

import pytest

from sft_hydra.process.allocator import NAMES, use_expandable_segments


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    return monkeypatch


def test_segments_are_expandable_from_the_start(environment):
    use_expandable_segments()
    assert {name: os.environ.get(name) for name in NAMES} == dict.fromkeys(NAMES) | {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True"
    }


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_the_user_stay(environment, name):
    environment.setenv(name, "max_split_size_mb:128")
    use_expandable_segments()
    assert {other for other in NAMES if other in os.environ} == {name}
    assert os.environ[name] == "max_split_size_mb:128"
