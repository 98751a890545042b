"""Muon over several ranks orthogonalises whole matrices, not each rank's part of them, and exactly enough that training does
not depend on the layout."""

import pytest
import torch
from support.packed import relative
from support.ranks import run_ranks
from support.training import Case, train

from sft_hydra.planning.layout import Layout

TOLERANCE = 2e-5
CASES = [
    (2, "llama", {"tp": 2}),
    (2, "llama", {"cp": 2}),
    (2, "qwen3_moe", {}),
    (2, "qwen3_moe", {"ep": 2}),
    (2, "nano", {"cp": 2, "ep": 2}),
]


@pytest.mark.parametrize(("world", "family", "sizes"), CASES)
def test_four_steps_are_those_of_one_process(one_process, world, family, sizes):
    case = Case(family, optimizer="muon", weights=torch.float32, steps=4)
    expected = one_process(case)
    for outcome in run_ranks(world, train, case, Layout(gpus_per_node=world, **sizes)):
        for result, other in zip(outcome.results, expected.results, strict=True):
            assert result.loss == pytest.approx(other.loss, rel=TOLERANCE)
        for name, parameter in outcome.parameters.items():
            assert relative(parameter, expected.parameters[name]) < TOLERANCE, name
