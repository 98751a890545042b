"""Sweeps: folders of jobs, one bad job stops all, a failing job stops no other."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from sft_hydra.cli import command
from sft_hydra.config.sweep_labels import MAX_LABEL, distinct_labels, job_label
from sft_hydra.errors import ConfigError
from sft_hydra.launch.local import read_metrics

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    GlobalHydra.instance().clear()


def test_label_is_the_swept_values() -> None:
    overrides = ["peft='null'", "optimizer.lr=1e-4", "name=mine", "seed=1", "data.path=/a/b c.jsonl"]
    assert job_label(overrides, ["peft", "optimizer.lr", "name", "data.path"]) == (
        "peft=null,optimizer.lr=1e-4,data.path=_a_b_c.jsonl"
    )
    assert job_label(overrides, []) == ""


def test_long_labels_are_cut_and_stay_different() -> None:
    labels = [job_label([f"data.path={'x' * 200}{end}"], ["data.path"]) for end in "ab"]
    assert len(set(labels)) == 2
    assert max(map(len, labels)) == MAX_LABEL


def test_clashing_labels_get_a_hash() -> None:
    jobs = [["data.path=a/b"], ["data.path=a b"], ["data.path=c"]]
    labels = distinct_labels([job_label(job, ["data.path"]) for job in jobs], jobs)
    assert len(set(labels)) == 3
    assert labels[2] == "data.path=c"


def test_one_bad_job_stops_all(empty_folder: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        command(["-m", "seq_length=100,128", "train.global_batch_size=null", "train.global_batch_tokens=256"])
    assert refusal.value.problems == [
        "seq_length=100: train.global_batch_tokens=256 is not a multiple of seq_length=100; nearest: 300"
    ]
    assert list(empty_folder.iterdir()) == []


def test_jobs_of_one_folder_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"outputs/tiny-demo-full/seed=1-\w+: 2 jobs of this sweep have this folder"):
        command(["-m", "seed=1,1"])


def test_common_folder_leaves_out_what_is_swept(capsys: pytest.CaptureFixture[str]) -> None:
    command(["-m", "peft=null,lora", "dry_run=true"])
    printed = capsys.readouterr().out
    assert "outputs/tiny-demo/peft=null" in printed
    assert "outputs/tiny-demo/peft=lora" in printed


def test_swept_name_is_the_parent_folder(capsys: pytest.CaptureFixture[str]) -> None:
    command(["-m", "name=a,b", "seed=1,2", "dry_run=true"])
    printed = capsys.readouterr().out
    assert all(f"outputs/{name}/seed={seed}" in printed for name in "ab" for seed in (1, 2))


def test_new_source_may_be_swept(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (empty_folder / f"{name}.jsonl").write_text("")
    command(["-m", "data=blend", "+data.sources.x.path=a.jsonl,b.jsonl", "dry_run=true"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")] == [
        "== job 1 of 2: data.sources.x.path=a.jsonl",
        "== job 2 of 2: data.sources.x.path=b.jsonl",
    ]


def test_a_failing_job_does_not_stop_the_others(empty_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (empty_folder / "bad.jsonl").write_text("no JSON\n")
    (empty_folder / "good.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    split = ["data.split.train=1", "data.split.valid=0", "data.split.test=0"]
    with pytest.raises(SystemExit) as end:
        command(["-m", "runner=data_prep", "data=jsonl", "data.path=bad.jsonl,good.jsonl", *split])
    assert end.value.code == 1
    shown = capfd.readouterr()
    assert "bad.jsonl:1" in shown.err
    rows = [line.split() for line in shown.out.splitlines() if "data.path=" in line and "outputs/" in line]
    assert [(row[1], row[3]) for row in rows] == [("data.path=bad.jsonl", "2"), ("data.path=good.jsonl", "0")]
    assert len(list((empty_folder / "outputs" / "data").glob("*/metadata.json"))) == 1


def test_metrics_of_a_job(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "eval/exact_match": 0.5},
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.5, "eval/exact_match": 0.4},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(file) == (1.5, ("eval/exact_match", 0.5))
    assert read_metrics(tmp_path / "none") == (None, None)
