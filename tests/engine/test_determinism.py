"""`train.deterministic`: training runs under torch's switch, which refuses operations without a deterministic algorithm, and
ends with the same bits."""

import os

import pytest
import torch
from support.training import Case, train

from sft_hydra.engine.determinism import compute_deterministically
from sft_hydra.planning.layout import Layout


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    compute_deterministically()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "nano"])
def test_steps_repeat_bit_for_bit(deterministic, family):
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    once, again = (train(Case(family, steps=2), Layout()) for _ in range(2))
    assert [result.loss for result in once.results] == [result.loss for result in again.results]
    assert all(torch.equal(once.parameters[name], again.parameters[name]) for name in once.parameters)


def test_a_workspace_of_the_user_stays(monkeypatch, deterministic):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    compute_deterministically()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
