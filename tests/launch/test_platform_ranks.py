"""What platforms set that start a container for each rank: it works, or is answered in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from sft_hydra.errors import ClusterError
from sft_hydra.process.rank import Rank, this_rank

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "given", [{}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "4"}, {"LOCAL_RANK": "0"}, {"RANK": "", "WORLD_SIZE": "2"}]
)  # fmt: skip
def test_the_only_rank(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert this_rank() == Rank()


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, "3412", strict=True):
        monkeypatch.setenv(name, value)
    assert this_rank() == Rank(3, 4, 1, 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, "RANK=0 WORLD_SIZE=4 is set, but not LOCAL_RANK and LOCAL_WORLD_SIZE: start the ranks"),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, "but not LOCAL_WORLD_SIZE: start the ranks of each host with torchrun"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "RANK=x: not a number"),
    ],
)  # fmt: skip
def test_an_answer(given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError) as refusal:
        this_rank()
    assert expected in str(refusal.value)


@pytest.mark.parametrize("program", ["sft_hydra", "sft_hydra.worker"])
def test_the_commands_end_with_code_2(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = subprocess.run(
        [sys.executable, "-m", program, "x"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "RANK=1 WORLD_SIZE=2 is set, but not LOCAL_RANK" in done.stderr
