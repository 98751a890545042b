"""Faults: killed at any moment, bits flipped, files torn or gone, disks full. Promise: nothing is lost beyond the last
completed checkpoint, what is not whole is never the latest, and data that is not what was written is never used."""

import os
import random
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.chats import data_cfg, question, write_jsonl
from support.configs import make_cfg
from support.killed import SMALLEST, losses, run_on, started
from support.packed import ARCHITECTURES, make_model

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.checkpoint.hf_export import export
from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.checkpoint.state import latest, load, save
from sft_hydra.config.rules_files import output_is_writable
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.prepare import open_existing, prepare
from sft_hydra.engine.loop import TrainState
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import CheckpointError, DataError, UserError
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.runners.write_export import export_settings
from sft_hydra.schema.config import SftConfig

STEPS, INTERVAL = 12, 2
MANY = [pytest.mark.reliability, pytest.mark.timeout(3000)]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def flipped(path: Path, chance: random.Random) -> bytes:
    """Flip one bit of a file; returns what was in it."""
    data = path.read_bytes()
    copy = bytearray(data)
    copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
    path.write_bytes(copy)
    return data


# kill -9


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=MANY)])
def test_a_training_killed_at_any_moment_ends_as_if_nothing_had_been(tmp_path: Path, kills: int) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    folder.mkdir()
    for _ in range(2):  # the first also starts the process that all others are forked from
        shutil.rmtree(straight)
        straight.mkdir()
        began = time.monotonic()
        process = started(run_on, straight, STEPS, INTERVAL)
        process.join()
        seconds = time.monotonic() - began
    expected = {step: loss for _, step, loss in losses(straight)}
    assert len(expected) == STEPS
    chance = random.Random(7)
    for _ in range(kills):
        before = latest(folder)
        if before is not None and before.name == f"step_{STEPS}":
            shutil.rmtree(folder)
            folder.mkdir()
            before = None
        known = len(losses(folder))
        process = started(run_on, folder, STEPS, INTERVAL)
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        process.kill()
        process.join()
        kept = int(before.name.removeprefix("step_")) if before else 0
        new = losses(folder)[known:]
        assert all(start == kept for start, _, _ in new)  # nothing before the last checkpoint is done again
        assert all(loss == expected[step] for _, step, loss in new)
        found = latest(folder)
        if found is not None:
            load(found, make_model(SMALLEST), None)
    process = started(run_on, folder, STEPS, INTERVAL)
    process.join()
    assert process.exitcode == 0
    ends = []
    for where in (straight, folder):
        model = make_model(SMALLEST)
        load(where / f"step_{STEPS}", model, None)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def _export(folder: Path) -> None:
    cfg = make_cfg()
    export(make_model(ARCHITECTURES["qwen3"]), export_settings(cfg), load_tokenizer(cfg), folder)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=MANY)])
def test_an_export_killed_at_any_moment_is_whole_or_not_there(tmp_path: Path, kills: int) -> None:
    began = time.monotonic()
    process = started(_export, tmp_path / "straight")
    process.join()
    seconds = time.monotonic() - began
    assert process.exitcode == 0
    names = sorted(path.name for path in (tmp_path / "straight").iterdir())
    chance = random.Random(3)
    for _ in range(kills):
        process = started(_export, tmp_path / "hf")
        time.sleep(chance.uniform(0.4, 1.05) * seconds)
        process.kill()
        process.join()
        if (tmp_path / "hf").exists():
            assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == names
            load_weights(make_model(ARCHITECTURES["qwen3"], seed=9), str(tmp_path / "hf"))
    process = started(_export, tmp_path / "hf")
    process.join()
    assert process.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "straight"]  # nothing half done is left behind


# checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    run_on(tmp_path / "run", 2, 1)
    return tmp_path / "run" / "step_2"


def loaded(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All that a resume takes from a checkpoint."""
    model = make_model(SMALLEST, seed=4)
    optimizer = build_optimizer(model, make_cfg().optimizer)
    state = load(checkpoint, model, optimizer)
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found |= {f"{name}/{key}": value.clone() for key, value in optimizer.state_of(parameter).items()}
    numbers = (state.step, state.rows_consumed, state.tokens, state.trained_tokens)
    return found | {"state": torch.tensor(numbers)}


@pytest.mark.parametrize("flips", [60, pytest.param(3000, marks=MANY)])
def test_a_flipped_bit_in_a_checkpoint_is_told_or_changes_nothing(checkpoint: Path, flips: int) -> None:
    whole = loaded(checkpoint)
    files = sorted(checkpoint.iterdir())
    chance, told = random.Random(0), 0
    for _ in range(flips):
        path = chance.choice(files)
        data = flipped(path, chance)
        try:
            found = loaded(checkpoint)
        except CheckpointError:
            told += 1
        else:
            assert whole.keys() == found.keys()
            assert all(torch.equal(whole[name], found[name]) for name in whole), path
        path.write_bytes(data)
    assert told > 0.9 * flips


def test_torn_and_missing_files_of_a_checkpoint_are_told(checkpoint: Path) -> None:
    for path in sorted(checkpoint.iterdir()):
        data = path.read_bytes()
        for part in {0, 1, len(data) // 2, len(data) - 1} if path.name != "COMPLETE" else {1, len(data) - 1}:
            path.write_bytes(data[:part])
            with pytest.raises(CheckpointError):
                loaded(checkpoint)
        path.unlink()
        if path.name == "COMPLETE":
            assert latest(checkpoint.parent) != checkpoint
        else:
            with pytest.raises(CheckpointError):
                loaded(checkpoint)
        path.write_bytes(data)
    assert loaded(checkpoint)


def test_a_full_disk_leaves_the_checkpoint_before(checkpoint: Path) -> None:
    cfg, model = make_cfg(), make_model(SMALLEST)
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    folder = checkpoint.parent
    with full_disk(4000), pytest.raises(CheckpointError, match="Is the disk full"):
        save(folder, model, optimizer, TrainState(step=3), recipe_of(cfg), cfg.checkpoint)
    assert latest(folder) == checkpoint
    save(folder, model, optimizer, TrainState(step=3), recipe_of(cfg), cfg.checkpoint)
    assert latest(folder) == folder / "step_3"


def test_the_latest_is_told_by_its_step_not_by_the_clock(checkpoint: Path) -> None:
    older = checkpoint.parent / "step_1"
    future = time.time() + 10 * 365 * 86400
    os.utime(older, (future, future))
    os.utime(checkpoint, (0, 0))
    assert latest(checkpoint.parent) == checkpoint


# packed sets


@pytest.fixture
def packed(tmp_path: Path) -> tuple[SftConfig, PackedSet]:
    path = write_jsonl(tmp_path / "rows.jsonl", [question(number) for number in range(1500)])
    cfg = data_cfg(tmp_path / "out", rows=path)
    cfg.data.num_shards = 2
    return cfg, prepare(cfg)


def rows_of(folder: Path) -> dict[tuple[str, int], tuple[bytes, ...]]:
    opened = PackedSet.open(folder)
    found = {}
    for split in ("train", "valid", "test"):
        for index in range(opened.num_rows(split)):
            row = opened.row(split, index)
            parts = (row.input_ids, row.loss_mask, row.seq_start_id, row.source_id)
            found[split, index] = tuple(np.ascontiguousarray(part).tobytes() for part in parts)
    return found


@pytest.mark.parametrize("flips", [40, pytest.param(2000, marks=MANY)])
def test_a_flipped_bit_in_a_packed_set_is_told_or_changes_nothing(
    packed: tuple[SftConfig, PackedSet], flips: int
) -> None:
    folder = packed[1].folder
    whole = rows_of(folder)
    files = [folder / shard["file"] for shard in packed[1].metadata["shards"]]
    files += [folder / split / "rows.npy" for split in ("train", "valid", "test")]
    chance, told = random.Random(0), 0
    for _ in range(flips):
        path = chance.choice(files)
        data = flipped(path, chance)
        try:
            found = rows_of(folder)
        except DataError as problem:
            told += str(path) in str(problem)
        else:
            assert found == whole, path
        path.write_bytes(data)
    assert told > 0.5 * flips


def test_missing_and_cut_off_shards_are_told_by_name(packed: tuple[SftConfig, PackedSet]) -> None:
    cfg, opened = packed
    path = opened.folder / opened.metadata["shards"][0]["file"]
    data = path.read_bytes()
    for change in (path.unlink, lambda: path.write_bytes(data[:-1])):
        change()
        with pytest.raises(DataError, match=path.name):
            open_existing(cfg)
    path.write_bytes(data)
    assert open_existing(cfg) is not None


def test_times_in_the_future_or_in_the_past_change_nothing(packed: tuple[SftConfig, PackedSet]) -> None:
    cfg, opened = packed
    for moment in (0, time.time() + 10 * 365 * 86400):
        for path in opened.folder.rglob("*"):
            os.utime(path, (moment, moment))
        os.utime(str(cfg.data.sources["rows"].path), (moment, moment))
        found = open_existing(cfg)
        assert found is not None
        assert found.folder == opened.folder


def test_a_torn_preparation_is_taken_up_or_done_again(packed: tuple[SftConfig, PackedSet], tmp_path: Path) -> None:
    """Whatever a kill may leave beside the set: half a record, an empty folder, a set that is not marked."""
    cfg, opened = packed
    whole = rows_of(opened.folder)
    for leave in ("plan.json", "spool", "metadata"):
        shutil.rmtree(opened.folder)
        partial = opened.folder.with_name(opened.folder.name + ".partial")
        (partial / "spool").mkdir(parents=True)
        if leave == "plan.json":
            (partial / "plan.json").write_text('{"key": "')
        elif leave == "spool":
            (partial / "spool" / "shard_000000.1.tmp").mkdir()
        else:
            (partial / "train").mkdir()
            (partial / "metadata.tmp").write_text("{")
        assert rows_of(prepare(cfg).folder) == whole, leave


# folders


def test_folders_that_cannot_be_written_are_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, said in ((tmp_path / "file", "is a file"), (Path("/proc"), "is not writable")):
        cfg = SftConfig(output_dir=str(place), run_dir=str(place / "run"))
        if place == Path("/proc") and os.access(place, os.W_OK):
            continue  # to root everything looks writable
        assert said in "".join(output_is_writable(cfg))
    assert not list(output_is_writable(SftConfig(output_dir="x", run_dir=str(tmp_path / "a" / "b"))))
    with pytest.raises(UserError, match="file"):
        prepare(data_cfg(tmp_path / "file", rows=write_jsonl(tmp_path / "rows.jsonl", [question(1)])))
