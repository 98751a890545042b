"""Files of a run that anything has happened to. Promise: whatever is wrong with one, a command names it and ends with exit code
2, or it is one whose loss costs nothing."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import SMALL

from sft_hydra.cli import command
from sft_hydra.errors import UserError

MANY = [pytest.mark.reliability, pytest.mark.timeout(3000)]
TRAIN = [*SMALL, "data.sample=40", "data.packed_dir=packed", "train.train_iters=2", "checkpoint.interval=1"]

FILES = {
    "state": "outputs/run/checkpoints/step_2/state.json",
    "mark": "outputs/run/checkpoints/step_2/COMPLETE",
    "config": "outputs/run/resolved.yaml",
    "metrics": "outputs/run/metrics.jsonl",
    "trackers": "outputs/run/trackers.json",
    "evaluation": "outputs/run/evaluation.json",
    "samples": "outputs/run/samples.json",
    "summary": "outputs/run/summary.json",
    "log": "outputs/run/log.txt",
    "packed": "packed/metadata.json",
    "index": "packed/train/rows.npy",
}


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_utf8(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\xff\xfe{\n")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def a_list(path: Path) -> None:
    path.write_text("[1, 2]\n")


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone" / "nowhere")


def to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


KINDS = [emptied, cut_off, not_utf8, zeros, a_list, nested, a_folder, dangling, to_itself]
NEVER_GOOD = {not_utf8, a_folder, dangling, to_itself}
COMMANDS = [TRAIN, [*TRAIN, "runner=inspect"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(TRAIN) == 0
    run = folder / "outputs" / "run"
    for name, text in {"trackers.json": '{"wandb": "abc"}', "evaluation.json": "{}", "samples.json": "{}"}.items():
        if not (run / name).exists():
            (run / name).write_text(text)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Bytes and time of every file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


CASES = [(name, damage, command) for name in FILES for damage in KINDS for command in COMMANDS]
FEW = random.Random(2).sample([case for case in CASES if case[2] is TRAIN], 6)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(FEW, id="few"),
        pytest.param(CASES, id="all", marks=[pytest.mark.reliability, pytest.mark.timeout(3000)]),
    ],
)
def test_a_damaged_file_is_named_or_costs_nothing(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cases: list[tuple[str, Callable[[Path], None], list[str]]],
) -> None:
    named = 0
    for number, (name, damage, argv) in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(finished, folder)
        monkeypatch.chdir(folder)
        path = folder / FILES[name]
        damage(path)
        told, code = "", 0
        try:
            code = command(argv)
        except UserError as error:
            told = error.describe()
        named += bool(told)
        if told:
            assert os.fspath(path.relative_to(folder)) in told, (name, damage.__name__, told)
        else:  # a file that this command does not read, or whose loss costs nothing
            assert code == 0
            needed = ("state", "mark", "config", "packed", "index") if argv is TRAIN else ("config", "packed")
            assert name not in needed or damage not in NEVER_GOOD, (name, damage.__name__)
        shutil.rmtree(folder)
    assert named > len(cases) // 3


def test_a_second_command_on_a_live_run_changes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one file's bytes or time, whatever it asks for."""
    from sft_hydra.config.run_folder import lock_run
    from sft_hydra.paths import RunPaths

    shutil.copytree(finished, tmp_path / "live")
    monkeypatch.chdir(tmp_path / "live")
    before = snapshot(tmp_path / "live")
    with lock_run(RunPaths(Path("outputs/run"))):
        for more in (
            [],
            ["train.train_iters=9"],
            *([f"runner={name}"] for name in ("inspect", "export", "evaluate", "data_prep")),
        ):
            with pytest.raises(UserError, match="this folder is in use by another training"):
                command([*TRAIN, *more])
        with pytest.raises(UserError, match=r"optimizer\.lr: "):
            command([*TRAIN, "optimizer.lr=0.5"])
    assert snapshot(tmp_path / "live") == before
