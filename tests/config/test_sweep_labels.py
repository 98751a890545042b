"""Kinds of sweeps that are not run are answered, and labels of jobs are no options of a shell."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft_hydra.cli import command
from sft_hydra.config.sweep_labels import job_label


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["-m", "data=jsonl", "data.path=glob(*.jsonl)"],
            "glob(...) selects options of a group, but data.path is a value",
        ),
        (["-m", "seed=glob(1*)"], "glob(...) selects options of a group, but seed is a value"),
        (["-m", "optimizer.lr=interval(1e-5,1e-3)"], "list the values: optimizer.lr=1e-5,3e-5,1e-4"),
        (["-m", "optimizer=glob(z*)"], "optimizer=glob(z*): no value matches, so there is no job to run"),
    ],
)
def test_answers(argv: list[str], expected: str, problems: Callable[..., list[str]]) -> None:
    assert any(expected in problem for problem in problems(*argv))


def test_options_of_a_group(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["-m", "optimizer=glob(*,exclude=*tiny)", "dry_run=true"]) == 0
    assert "job 2 of 2: optimizer=muon" in capsys.readouterr().out


def test_a_label_is_no_option() -> None:
    assert job_label(["--x=1", "seed=2"], ["--x", "seed"]) == "x=1,seed=2"
    assert job_label(["-rf=1"], ["-rf"]) == "rf=1"
