"""What arrives in trackers is read back from their own files: W&B's offline log, TensorBoard's events, MLflow's database."""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft_hydra.cli import command
from sft_hydra.errors import TrackerError
from sft_hydra.observe.metrics import read_metrics
from sft_hydra.observe.trackers import MLflow, Trackers, optional_module, tracked_values

SMALL = [
    "name=small", "data.sample=40", "data.num_workers=1", "data.split={train:0.8,valid:0.2,test:0.0}",
    "train.train_iters=3", "eval.exact_match.path=null", "eval.samples=[]", "export.auto=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a small run with all three trackers."""
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    folder = tmp_path_factory.mktemp("tracked")
    assert command([
        *SMALL, f"output_dir={folder}", "logger=[wandb,tensorboard,mlflow]", "logger.wandb.mode=offline",
        "logger.wandb.project=chats", f"logger.mlflow.tracking_uri=sqlite:///{folder}/runs.db",
    ]) == 0  # fmt: skip
    return folder / "small"


def curve(run: Path, key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in read_metrics(run / "metrics.jsonl") if key in line]


def wandb_messages(log: bytes) -> Iterator[bytes]:
    """Messages of a `.wandb` file: LevelDB's log format after a header of 7 bytes, blocks of 32 KiB with no piece across two."""
    place, message = 7, b""
    while place < len(log):
        if 32768 - place % 32768 < 7:  # too short for a piece's header: the block's filling
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", log, place)
        message += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, last: else the first or a middle piece
            yield message
            message = b""


def wandb_records(run: Path) -> dict[str, list]:
    """What W&B wrote, by kind."""
    from wandb.proto import wandb_internal_pb2

    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    found = defaultdict(list)
    for data in wandb_messages(log.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        found[kind].append(getattr(record, kind))
    return found


def test_tensorboard_shows_every_step(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name, key in (("train/loss", "loss"), ("train/epoch", "epoch"), ("train/lr", "lr"), ("val/loss", "val/loss")):
        shown = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(name)]
        assert shown == curve(run, key)
    assert {"train/loss/drill", "train/grad_norm", "train/seconds"} <= set(events.Tags()["scalars"])
    assert {"config/text_summary", "dataset/text_summary", "model/text_summary"} == set(events.Tags()["tensors"])


def test_mlflow_has_metrics_config_and_lineage(run: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent}/runs.db")
    number = json.loads((run / "trackers.json").read_text())["mlflow"]
    theirs = client.get_run(number)
    assert theirs.info.status == "FINISHED"
    assert theirs.info.run_name == "small"
    assert [(m.step, m.value) for m in client.get_metric_history(number, "train/loss")] == curve(run, "loss")
    assert theirs.data.params["seq_length"] == "256"
    assert theirs.data.params["optimizer.kind"] == "muon"
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads(theirs.data.tags["dataset.content_key"]) == summary["lineage"]["content key"]
    assert json.loads(theirs.data.tags["model.data_content_key"]) == summary["lineage"]["content key"]
    assert theirs.data.tags["model.folder"] == str(run / "hf")


def test_wandb_offline_has_metrics_config_and_artifacts(run: Path) -> None:
    records = wandb_records(run)
    (about,) = records["run"]
    assert (about.project, about.display_name) == ("chats", "small")
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert config["train.train_iters"] == 3
    lines = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item} for row in records["history"]
    ]
    assert [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line] == curve(run, "loss")

    data, model = records["artifact"]
    assert (data.type, data.name, model.type, model.name) == ("dataset", "demo-data", "model", "small-model")
    facts = json.loads(data.metadata)
    assert facts["blend"].keys() == facts["rejects"].keys() == {"drill", "train"}
    assert json.loads(model.metadata)["data_content_key"] == facts["content_key"]
    assert json.loads(model.metadata)["data"] == data.name
    contents = {entry.path: entry.ref for entry in data.manifest.contents}
    assert contents.pop("metadata.json") == ""
    assert "folder/train/shard_000000.parquet" in contents
    assert all(reference.startswith("file://") for reference in contents.values())  # pointed at, not uploaded


def test_preparing_data_leaves_the_artifact_that_training_uses(run: Path) -> None:
    assert command([
        *SMALL, "name=prepared", "runner=data_prep", f"output_dir={run.parent}", "logger=[wandb,mlflow]",
        "logger.wandb.mode=offline", f"logger.mlflow.tracking_uri=sqlite:///{run.parent}/runs.db",
    ]) == 0  # fmt: skip
    records = wandb_records(run.parent / "prepared")
    (made,), (used, _) = records["artifact"], wandb_records(run)["artifact"]
    assert (made.type, made.name, made.digest) == ("dataset", "demo-data", used.digest)
    facts = json.loads(made.metadata)
    assert facts == json.loads(used.metadata)
    assert sum(facts["blend"].values()) == pytest.approx(1, abs=1e-5)
    assert facts["rejects"].keys() == {"drill", "train"}
    assert {entry.path for entry in made.manifest.contents} >= {"metadata.json", "folder/metadata.json"}
    assert "history" not in records

    from mlflow.tracking import MlflowClient

    number = json.loads((run.parent / "prepared/trackers.json").read_text())["mlflow"]
    tags = MlflowClient(f"sqlite:///{run.parent}/runs.db").get_run(number).data.tags
    assert json.loads(tags["dataset.content_key"]) == facts["content_key"]


def test_a_resumed_run_goes_on_in_the_same_runs(run: Path) -> None:
    from mlflow.tracking import MlflowClient

    before = (run / "trackers.json").read_text()
    assert command([
        *SMALL, "train.train_iters=4", f"output_dir={run.parent}", "logger=mlflow",
        f"logger.mlflow.tracking_uri=sqlite:///{run.parent}/runs.db",
    ]) == 0  # fmt: skip
    assert json.loads((run / "trackers.json").read_text()) == json.loads(before)
    client = MlflowClient(f"sqlite:///{run.parent}/runs.db")
    history = client.get_metric_history(json.loads(before)["mlflow"], "train/loss")
    assert [m.step for m in history] == [1, 2, 3, 4]


def test_names_of_metrics() -> None:
    line = {
        "step": 3,
        "loss": 1.0,
        "loss/code": 2.0,
        "mfu": None,
        "val/bpb": 0.5,
        "eval/chatcore": 0.2,
        "eval/chatcore/mmlu": 0.3,
    }
    assert tracked_values(line) == {
        "train/loss": 1.0,
        "train/loss/code": 2.0,
        "val/bpb": 0.5,
        "chatcore_metric": 0.2,
        "chatcore/mmlu": 0.3,
    }


def test_a_missing_package_is_told_with_its_command() -> None:
    with pytest.raises(TrackerError, match=r"pip install mlflow-skinny"):
        optional_module("a_package_that_is_not_there", "mlflow")


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    (tmp_path / "file").touch()
    uri = f"sqlite:///{tmp_path}/file/runs.db"
    with pytest.raises(TrackerError, match=rf"logger\.mlflow\.tracking_uri={uri}: "):
        MLflow(tracking_uri=uri, experiment="chats", name="small", run_id=None, config={})


def test_a_tracker_that_fails_is_switched_off_and_told() -> None:
    class Flaky:
        logged = 0

        def log(self, step, values):
            if step == 2:
                raise ConnectionError("the server went away")
            self.logged += 1

        used = made = close = lambda self, *_: None

    told: list[str] = []
    flaky = Flaky()
    trackers = Trackers([flaky], told.append)
    for step in range(1, 5):
        trackers.log({"step": step, "loss": 1.0})
    trackers.close()
    assert flaky.logged == 1
    assert told == ["Flaky failed and is disabled (the server went away); metrics.jsonl has all values"]
