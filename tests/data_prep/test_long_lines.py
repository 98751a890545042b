"""A row without end is rejected, counted and named, at the price of reading past it; the rows beside it are kept."""

import io
import json
import signal
import time
from pathlib import Path

import pytest

from sft_hydra.chat.resource_limits import LimitError, limit_resources
from sft_hydra.cli import command
from sft_hydra.data_prep import sources
from sft_hydra.data_prep.sources import MalformedRow, lines_of

ROW = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]})


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_BYTES", 8)
    for text in (b"", b"a\nb", b"1234567\n\n12345678", b"a\n\n"):
        assert list(lines_of(io.BytesIO(text))) == list(io.BytesIO(text))
    for long in (b"123456789", b"x" * 100, b"x" * 8):
        found = list(lines_of(io.BytesIO(b"a\n" + long + b"\nb\n" + long * 2)))
        assert [found[0], found[2]] == [b"a\n", b"b\n"]
        assert all(isinstance(found[place], MalformedRow) for place in (1, 3))
        assert f"a line of {len(long) + 1:,} bytes" in found[1].problem  # type: ignore[union-attr]


def test_a_line_of_200_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open("chats.jsonl", "w") as file:
        file.write(ROW + "\n")
        file.write(ROW.replace("Hi", "x" * 200_000_000) + "\n")
        file.write(ROW.replace("Hi", "He") + "\n")
    argv = ["runner=data_prep", "data=jsonl", "data.path=chats.jsonl", "data.num_workers=1", "data.packed_dir=packed"]
    assert command([*argv, "seq_length=64"]) == 0
    (reject,) = [json.loads(line) for line in Path("packed/rejects.jsonl").read_text().splitlines()]
    assert reject["reason"] == "too_large"
    assert "chats.jsonl:2" in json.dumps(reject)
    assert json.loads(Path("packed/metadata.json").read_text())["sources"][0]["kept"] == 2


def test_a_limit_is_of_time_by_the_clock_too() -> None:
    with pytest.raises(LimitError), limit_resources(0.1):  # noqa: PT012
        while True:
            time.sleep(0.01)  # takes no time of the processor


def test_the_alarm_of_the_program_around_it_stays() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: came.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with limit_resources():
            pass
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
        signal.raise_signal(signal.SIGALRM)
        assert came == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
