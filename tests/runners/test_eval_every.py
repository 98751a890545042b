"""`eval.every`: 0 is never, at the start and the end too; null is before and after training; a number is also between."""

import json
from pathlib import Path

import pytest

from sft_hydra.cli import command


def row(text: str) -> str:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"Hello, {text}."}]
    return json.dumps({"messages": messages}) + "\n"


SMALL = (
    "eval.exact_match.path=null", "eval.samples=[]", "export.auto=false", "seq_length=64", "train.global_batch_size=1",
    "data=jsonl", "data.path=train.jsonl", "data.valid_path=valid.jsonl", "data.num_workers=1", "device=cpu", "train.train_iters=3",
    "model.architecture.num_hidden_layers=1", "checkpoint.interval=null",
)  # fmt: skip


@pytest.mark.parametrize(("every", "steps"), [("0", []), ("null", [0, 3]), ("2", [0, 2, 3])])
def test_steps_of_validation(every: str, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "valid.jsonl"):
        Path(name).write_text("".join(row(f"{name} {number}") for number in range(4)))
    assert command([*SMALL, f"eval.every={every}", "name=run"]) == 0
    lines = [json.loads(line) for line in Path("outputs/run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/loss" in line] == steps
