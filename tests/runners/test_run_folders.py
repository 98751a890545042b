"""Folders named by hand, and what a run goes on from."""

import json
import shutil
from pathlib import Path

import pytest
from support.chats import question, write_jsonl
from support.commands import SMALL as SMALLEST

from sft_hydra.cli import command
from sft_hydra.errors import CheckpointError, UserError
from sft_hydra.paths import complete_checkpoints, find_checkpoint, read_progress

SMALL = [*SMALLEST, "train.train_iters=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on rows.jsonl, its checkpoints in `kept`."""
    folder = tmp_path_factory.mktemp("trained")
    rows = write_jsonl(folder / "rows.jsonl", [question(number) for number in range(100)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command([*SMALL, "data=jsonl", f"data.path={rows.name}", "checkpoint.save=kept"]) == 0
    return folder


@pytest.fixture
def there(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    mark = tmp_path / "there" / "kept" / "owner.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"run": str(tmp_path / "there" / "outputs" / "run")}))
    return tmp_path / "there"


def again(*more: str) -> list[str]:
    return [*SMALL, "data=jsonl", "data.path=rows.jsonl", "checkpoint.save=kept", *more]


def test_a_checkpoint_says_what_it_was_made_from(there: Path) -> None:
    progress = read_progress(find_checkpoint(there / "kept"))
    (packed,) = (there / "outputs" / "data").glob("*/metadata.json")
    assert progress["data"] == packed.parent.name
    assert progress["config"]["settings"]["optimizer.lr"] > 0
    assert len(progress["config"]["digest"]) == 64


def test_other_rows_under_the_same_path_are_another_run(there: Path) -> None:
    old = read_progress(find_checkpoint("kept"))["data"]
    write_jsonl(there / "rows.jsonl", [question(number) for number in range(100, 200)])
    with pytest.raises(CheckpointError, match=rf"content key.* changed from {old} to [0-9a-f]{{16}}"):
        command(again("train.train_iters=2"))


def test_a_config_rewritten_by_another_command_is_not_what_is_compared(there: Path) -> None:
    resolved = there / "outputs" / "run" / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("seed: 1234", "seed: 5"))
    with pytest.raises(UserError, match=r"seed: 1234 there, 5 here"):
        command(again("seed=5", "train.train_iters=2"))
    resolved.unlink()
    with pytest.raises(UserError, match=r"seed: 1234 there, 5 here"):
        command(again("seed=5", "train.train_iters=2"))


def test_checkpoints_of_another_run_are_not_gone_on_from(there: Path) -> None:
    with pytest.raises(
        UserError, match=r"checkpoint\.save=kept: it belongs to the run in .*outputs/run; choose another"
    ):
        command(again("name=second"))
    assert complete_checkpoints(Path("kept")) == [Path("kept/step_1")]


def test_the_folder_of_another_run_is_not_taken(there: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.save=outputs/run/mine: it is inside the folder of another run"):
        command([*again("name=second"), "checkpoint.save=outputs/run/mine"])


@pytest.mark.parametrize(
    "shared", ["checkpoint.save=one", "export.path=one", "data.packed_dir=one data.overlong=drop,split_turns"]
)
def test_jobs_of_a_sweep_do_not_share_a_folder(there: Path, shared: str) -> None:
    swept = [] if "data.overlong" in shared else ["optimizer.lr=0.1,0.2"]
    jobs = [text for text in again("-m", "export.auto=true", *swept, *shared.split()) if text != "checkpoint.save=kept"]
    with pytest.raises(UserError, match=rf"{shared.split()[0]}: .*jobs of this sweep"):
        command(jobs)
    assert not (there / "one").exists()


def test_copies_made_by_hand_are_left_alone(there: Path) -> None:
    kept = there / "kept"
    shutil.copytree(kept / "step_1", kept / "step_1_best")
    shutil.copytree(kept / "step_1", kept / "step_01")
    shutil.copytree(kept / "step_1", kept / "step_7")
    (kept / "step_7" / "COMPLETE").write_text("")  # as a crash may leave it
    assert complete_checkpoints(kept) == [kept / "step_1"]
    assert command(again("train.train_iters=2", "checkpoint.keep_last=1")) == 0
    assert {path.name for path in kept.iterdir()} == {"step_2", "step_1_best", "step_01", "step_7", "owner.json"}


def test_a_checkpoint_under_the_name_of_another_step_is_refused(there: Path) -> None:
    (there / "kept" / "step_1").rename(there / "kept" / "step_5")
    with pytest.raises(CheckpointError, match=r"step_5/state\.json.*it is of step 1"):
        command(again("train.train_iters=9"))
