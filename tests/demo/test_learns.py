"""What the README promises: the default command teaches the tiny model every task of the demo."""

import json

import pytest

from sft_hydra.cli import command


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_command_learns_the_tasks(tmp_path):
    assert command([f"output_dir={tmp_path}"]) == 0
    kept = json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    assert kept["before"]["average"] < 0.05
    assert kept["after"]["average"] >= 0.9
    assert kept["after"]["tasks"]["calculator"] >= 0.8
    spelled = json.loads((tmp_path / "demo" / "samples.json").read_text())["after"][0]
    assert spelled["text"] == "l e m o n"
