"""The command with train.early_stopping, eval.every=epoch and train.ema_decay."""

import json

import pytest
from safetensors.torch import load_file

from sft_hydra.cli import command
from sft_hydra.errors import ConfigError

SHORT = [
    "data.sample=40", "optimizer=adamw", "data.split={train:0.8,valid:0.2,test:0.0}", "data.num_workers=1", "train.global_batch_size=1",
    "train.micro_batch_size=1", "train.epochs=4", "eval.every=epoch", "eval.samples=[]", "eval.exact_match.path=null",
    "train.early_stopping.metric=val/loss", "train.early_stopping.patience=1", "train.early_stopping.min_delta=9",
    "train.ema_decay=0.9",
]  # fmt: skip


def test_a_run_ends_early_and_exports_its_last_weights_or_their_average(tmp_path, capsys):
    run = [f"output_dir={tmp_path}", "name=run"]
    assert command([*run, *SHORT]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ends = [line["step"] for line in lines if "val/loss" in line]
    epoch = next(line["step"] for line in lines if line.get("epoch", 0) >= 1)
    assert ends == [0, epoch, 2 * epoch]  # the second epoch gains less than min_delta
    assert "stopped early" in capsys.readouterr().out
    assert (tmp_path / "run" / "hf" / "model.safetensors").is_file()

    assert command([*run, *SHORT]) == 0
    assert "finished" in capsys.readouterr().out

    assert command([*run, "runner=export", "export.ema=true", f"export.path={tmp_path / 'average'}"]) == 0
    last, average = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run/hf", tmp_path / "average"))
    assert last.keys() == average.keys()
    assert any(not tensor.equal(average[name]) for name, tensor in last.items())


@pytest.mark.slow
def test_more_patience_goes_on(tmp_path):
    run = [f"output_dir={tmp_path}", "name=run", *SHORT, "train.ema_decay=null", "export.auto=false"]
    assert command(run) == 0
    file = tmp_path / "run" / "metrics.jsonl"
    stopped = max(json.loads(line)["step"] for line in file.read_text().splitlines())
    assert command([*run, "train.early_stopping.patience=2"]) == 0
    assert max(json.loads(line)["step"] for line in file.read_text().splitlines()) == stopped * 3 / 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.every=epochs"], "eval.every=epochs is neither a number of steps nor epoch"),
        (["train.early_stopping.metric=loss"], "not measured at intervals"),
        (["train.early_stopping.metric=eval/chatcore"], r"set eval\.chatcore_every"),
        (["train.early_stopping.metric=val/loss", "eval.every=null"], r"set eval\.every"),
        (["export.ema=true"], r"no average of the weights without train\.ema_decay"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        command([*overrides, "dry_run=true"])
