"""runner=inspect as a command: text, roles and counts in the terminal, and the page."""

from pathlib import Path

import pytest

from sft_hydra.cli import command
from sft_hydra.errors import UserError

DEMO = ["runner=inspect", "data.sample=60", "data.num_workers=1", "inspect.count=1", "name=looked"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_terminal_shows_turns_and_counts_and_the_page_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    command([*DEMO, "inspect.html=true"])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert any(line.startswith("     user | <|im_start|>user") for line in lines)
    assert any(line.startswith("assistant | <|im_start|>assistant") for line in lines)
    roles = {cells[0]: cells[1:] for line in lines if len(cells := line.strip("│ ").split()) == 7 and "│" in cells}
    user, assistant = roles["user"], roles["assistant"]
    assert user[3] == "0"
    assert int(assistant[3]) > 0
    assert 'data-block="0"' in Path("outputs/looked/inspect.html").read_text()
    assert "every packed row" in shown


def test_a_split_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as refusal:
        command([*DEMO, "inspect.split=valid", "data.split.train=1", "data.split.valid=0", "data.split.test=0"])
    assert "inspect.split=valid: split is empty" in str(refusal.value)
    assert "choose one of train (" in str(refusal.value)
