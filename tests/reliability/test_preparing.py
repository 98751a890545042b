"""Preparations under attack: killed with their workers, stopped, their inputs replaced, rewritten or cut off meanwhile. Promise:
what is prepared is what the key says, and nothing outlives who started it."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from support.chats import assistant, data_cfg, question, user, write_jsonl
from support.preparing import contents, packed_cfg, started, wait_until_gone

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data_prep.owning import in_use
from sft_hydra.data_prep.plan import read_request
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.errors import DataError

MANY = [pytest.mark.reliability, pytest.mark.timeout(3000)]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def long_rows(path: Path, word: str) -> Path:
    """About as much work as a process needs to start."""
    return write_jsonl(path, [{"messages": [user("Say it."), assistant(f"{word} " * n)]} for n in range(1, 240)] * 8)


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=MANY)])
def test_a_preparation_killed_with_workers_leaves_nothing_that_writes(tmp_path: Path, kills: int) -> None:
    """After `kill -9` of the preparation alone, its workers are gone, and the next one in the same folder, of the same or of
    another input, gives the bytes that it gives alone."""
    inputs = [long_rows(tmp_path / f"{word}.jsonl", word) for word in ("word", "other")]
    alone = []
    for number, rows in enumerate(inputs):
        began = time.monotonic()
        process = started(packed_cfg(tmp_path / f"alone{number}", rows, workers=3), f"alone{number}")
        process.join()
        seconds = time.monotonic() - began
        assert process.exitcode == 0
        alone.append(contents(tmp_path / f"alone{number}" / "packed"))
    chance = random.Random(11)
    for kill in range(kills):
        first, second = chance.choice([(0, 0), (1, 1), (0, 1), (1, 0)])
        folder, token = tmp_path / f"killed{kill % 2}", f"{tmp_path.name}-{kill}"
        if chance.random() < 0.7:  # else a set, perhaps of the other input, is there already
            shutil.rmtree(folder / "packed", ignore_errors=True)
        process = started(packed_cfg(folder, inputs[first], workers=3), token)
        time.sleep(chance.uniform(0.1, 1.0) * seconds)
        process.kill()
        process.join()
        if chance.random() < 0.5:  # else the next one begins in the same moment
            wait_until_gone(token)
        packed = prepare(packed_cfg(folder, inputs[second]))
        wait_until_gone(token)
        assert contents(packed.folder) == alone[second], (kill, first, second)
        left = {path.name for path in folder.iterdir()} - {"packed", "packed.lock"}
        assert left <= {"packed.partial"}  # what was begun of another set than the one that is there


@pytest.mark.parametrize("stops", [2, pytest.param(20, marks=MANY)])
def test_sigterm_stops_a_preparation_and_its_workers(tmp_path: Path, stops: int) -> None:
    rows = long_rows(tmp_path / "rows.jsonl", "word")
    process = started(packed_cfg(tmp_path / "alone", rows, workers=3), "alone")
    process.join()
    alone = contents(tmp_path / "alone" / "packed")
    chance = random.Random(5)
    stopped = 0
    for number in range(stops):
        folder, token = tmp_path / f"stopped{number}", f"{tmp_path.name}-{number}"
        process = started(packed_cfg(folder, rows, workers=3), token)
        while not (folder / "packed.partial" / "spool").exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        stopped += process.exitcode != 0
        assert process.exitcode == 0 or not (folder / "packed").exists()
        wait_until_gone(token)
        assert contents(prepare(packed_cfg(folder, rows)).folder) == alone
    assert stopped


def replaced(path: Path, new: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(new)
    os.replace(beside, path)


def rewritten(path: Path, new: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.write(new)
        stream.truncate()


def truncated(path: Path, new: bytes) -> None:
    os.truncate(path, len(new) // 3)


KINDS = [replaced, rewritten, truncated]


@pytest.mark.parametrize("races", [4, pytest.param(120, marks=MANY)])
@pytest.mark.parametrize("change", KINDS)
def test_an_input_that_changes_while_it_is_prepared_poisons_nothing(
    tmp_path: Path, change: Callable[[Path, bytes], None], races: int
) -> None:
    """Changed at a random moment, the run ends with the file's name, or its set is, in every byte, that of what the file held
    before or after. Every set that is left has the rows of its own key."""
    path = tmp_path / "rows.jsonl"
    old = write_jsonl(path, [question(number) for number in range(4000)]).read_bytes()
    new = old.replace(b"friend", b"cousin")
    versions = [old, old[: len(new) // 3] if change is truncated else new]
    cfg = data_cfg(tmp_path / "out", rows=path)
    cfg.data.num_shards = 5
    expected, seconds = {}, 0.0
    for number, version in enumerate(versions):
        path.write_bytes(version)
        began = time.monotonic()
        alone = data_cfg(tmp_path / f"alone{number}", rows=path)
        alone.data.num_shards = 5
        packed = prepare(alone)
        seconds = time.monotonic() - began
        expected[packed.folder.name] = contents(packed.folder)
    chance, told = random.Random(races), 0
    for race in range(races):
        path.write_bytes(old)
        cfg.output_dir = str(tmp_path / f"out{race}")
        thread = Thread(target=lambda wait: (time.sleep(wait), change(path, new)), args=[chance.uniform(0, seconds)])
        thread.start()
        problem = ""
        try:
            prepare(cfg)
        except DataError as error:
            problem = str(error)
        told += bool(problem)
        assert not problem or str(path) in problem
        thread.join()
        for metadata in Path(cfg.output_dir).glob("data/*/metadata.json"):
            assert contents(metadata.parent) == expected[metadata.parent.name], race
        packed = prepare(cfg)  # of what is there now
        assert packed.folder.name == read_request(cfg, load_tokenizer(cfg)).key
        assert contents(packed.folder) == expected[packed.folder.name], race
    assert told


@pytest.mark.parametrize("change", KINDS)
def test_an_input_that_changes_behind_the_plan_is_named(tmp_path: Path, change: Callable[[Path, bytes], None]) -> None:
    """In the moment that is worst: its checksum is taken, none of its rows is read."""
    path = write_jsonl(tmp_path / "rows.jsonl", [question(number) for number in range(200)])
    cfg = data_cfg(tmp_path / "out", rows=path)
    cfg.data.num_shards = 4
    new = path.read_bytes().replace(b"friend", b"cousin")

    def at_first(_: object) -> None:
        if path.read_bytes() != new:
            change(path, new)

    with pytest.raises(DataError, match=r"rows\.jsonl: changed during data preparation"):
        prepare(cfg, at_first)
    assert not list((tmp_path / "out" / "data").glob("*/metadata.json"))


def test_touching_an_input_is_no_change(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [question(number) for number in range(50)])

    def touch(_: object) -> None:
        os.utime(path, (0, 0))
        replaced(path, path.read_bytes())

    assert prepare(data_cfg(tmp_path / "out", rows=path), touch).metadata["rows"] == 50


def test_a_set_in_use_or_being_made_is_not_replaced(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [question(number) for number in range(50)])
    second = write_jsonl(tmp_path / "b.jsonl", [question(number) for number in range(60)])
    packed = prepare(packed_cfg(tmp_path, first))
    before = contents(packed.folder)
    with in_use(packed.folder):
        with pytest.raises(
            DataError, match=r"packed: a run is training on the packed set there.*another data\.packed_dir"
        ):
            prepare(packed_cfg(tmp_path, second))
        assert prepare(packed_cfg(tmp_path, first)).metadata["rows"] == 50  # the same set may be used by many
    assert contents(packed.folder) == before
    refused = []
    third = write_jsonl(tmp_path / "c.jsonl", [question(number) for number in range(70)])

    def at_work(_: object) -> None:
        if not refused:
            with pytest.raises(DataError, match="is preparing a different packed set there") as problem:
                prepare(packed_cfg(tmp_path, third))
            refused.append(problem)

    assert prepare(packed_cfg(tmp_path, second), at_work).metadata["rows"] == 60
    assert refused
