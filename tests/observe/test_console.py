"""A task that takes long is named on a console that is not a terminal, with how far it is; a short one says nothing."""

import time
from pathlib import Path

import pytest

from sft_hydra.observe import console as module
from sft_hydra.observe.console import Console, counted


def lines_after(log: Path, wanted: int) -> list[str]:
    """The lines of a log once it has so many; the test's own limit of time ends the wait."""
    while len(lines := log.read_text().splitlines()) < wanted:
        time.sleep(0.01)
    return lines


@pytest.mark.timeout(60)
def test_a_task_that_goes_on_is_named_and_then_shows_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.02)
    log = tmp_path / "log.txt"
    with Console(log) as console, console.work("loading the model") as work:
        assert lines_after(log, 1)[0] == "loading the model: 0 s so far"
        counted(work, "rows")(3, 1200)
        assert "loading the model: 3 of 1,200 rows" in lines_after(log, 3)
        work.stage("comparing")
        before = len(log.read_text().splitlines())
        lines = lines_after(log, before + 3)
        assert "loading the model: comparing" in lines
        assert lines[-1].startswith("loading the model: comparing, ")  # without news, at least the time
        assert lines[-1].endswith(" s so far")


def test_a_short_task_says_nothing(tmp_path):
    log = tmp_path / "log.txt"
    with Console(log) as console, console.work("validation") as work:
        counted(work, "rows")(1, 2)
    assert log.read_text() == ""


def test_a_silent_console_says_nothing_of_a_long_task(capsys, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    with Console(speak=False) as console, console.work("importing"):
        time.sleep(0.05)
    assert capsys.readouterr().out == ""
