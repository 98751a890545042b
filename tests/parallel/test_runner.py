"""The real command on several ranks: what it writes is what one rank writes, and it goes on under another layout."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

SHORT = [
    "train.train_iters=4",
    "train.global_batch_size=4",
    "checkpoint.interval=2",
    "optimizer=adamw",
    "eval.every=2",
    "eval.samples=[]",
    "eval.exact_match.max_items=1",
    "eval.exact_match.max_new_tokens=4",
    "data.sample=300",
]


def command(folder, name, *overrides):
    """The output of the command."""
    whole = [sys.executable, "-m", "sft_hydra", f"output_dir={folder}", f"name={name}", *overrides]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(folder, name, *overrides):
    """Losses by step, validation losses by step, and the output of the command."""
    said = command(folder, name, *SHORT, *overrides)
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return losses, {line["step"]: line["val/loss"] for line in lines if "val/loss" in line}, said


def chatcore(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval/chatcore/arc_easy"] for line in lines if "eval/chatcore" in line}


def same(actual, expected):
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    assert actual[1] == pytest.approx(expected[1], rel=1e-5)


def test_two_ranks_train_validate_evaluate_and_export_like_one(tmp_path):
    row = {
        "question": "Which is a fruit?",
        "choices": {"text": ["stone", "apple"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    (tmp_path / "arc_easy.jsonl").write_text(json.dumps(row))
    asked = ["eval.chatcore_every=2", "eval.chatcore_tasks=[arc_easy]", f"eval.data_dir={tmp_path}"]
    one = train(tmp_path, "one", "export.auto=false", "eval.exact_match.path=null", *asked)
    two = train(tmp_path, "two", "cluster.gpus_per_node=2", *asked)
    same(two, one)
    assert chatcore(tmp_path / "two") == chatcore(tmp_path / "one")
    assert list(chatcore(tmp_path / "two")) == [0, 2, 4]
    assert list(one[0]) == [1, 2, 3, 4]
    run = tmp_path / "two"
    assert {"before", "after"} <= json.loads((run / "evaluation.json").read_text()).keys()
    assert (run / "hf" / "model.safetensors").is_file()
    assert (run / "report.html").is_file()
    again = ["runner=evaluate", "cluster.gpus_per_node=2", "eval.sharded=true", "eval.tasks=[chatcore]"]
    command(tmp_path, "two", *again)
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["evaluate"]["tasks"] == kept["after"]["tasks"]
    assert kept["evaluate"]["chatcore"]["value"] == pytest.approx(kept["after"]["chatcore"]["value"])
    assert kept["evaluate"]["val/loss"] == pytest.approx(two[1][4], rel=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("sharded", "settings"), [("true", ["generate.temperature=1.3", "generate.top_p=0.9"]), ("false", [])]
)
def test_four_ranks_with_their_experts_generate_what_one_does(tmp_path, sharded, settings):
    train(tmp_path, "run", "model=tiny_nemotron_h", "eval.exact_match.path=null", "export.auto=false")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Spell the word {word}.\n" for word in ("tea", "coffee", "water", "milk", "juice")))
    asked = ["runner=generate", f"generate.prompt_file={prompts}", "generate.max_new_tokens=12"]
    four = ["cluster.gpus_per_node=4", "parallel.ep=4", f"eval.sharded={sharded}"]
    one, many = (command(tmp_path, "run", *asked, *settings, *ranks) for ranks in ([], four))
    assert answers(many) == answers(one)
    assert len(answers(one)) >= 10


@pytest.mark.distributed
def test_two_ranks_export_what_one_does(tmp_path):
    train(tmp_path, "run", "eval.exact_match.path=null", "export.auto=false")
    for name, ranks in (("one", []), ("two", ["cluster.gpus_per_node=2"])):
        command(tmp_path, "run", "runner=export", f"export.path={tmp_path / name}", *ranks)
    one, many = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(many[name], tensor) for name, tensor in one.items())


def answers(said):
    """What is said from the first prompt on."""
    return said[said.index("\n> ") :].splitlines()


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        ["cluster.gpus_per_node=4", "parallel.tp=2", "parallel.cp=2"],
        ["cluster.gpus_per_node=2", "parallel.pp=2"],
        ["cluster.gpus_per_node=4", "parallel.pp=2", "parallel.dp_replicate=2"],
        ["cluster.gpus_per_node=4", "checkpoint.async_save=true"],
    ],
)
@pytest.mark.parametrize("model", ["tiny", "tiny_nemotron_h"])
def test_a_stopped_run_goes_on_under_another_layout(tmp_path, model, layout):
    one = train(tmp_path, "one", f"model={model}")
    train(tmp_path, "many", f"model={model}", *layout)
    run = tmp_path / "many"
    (run / "checkpoints" / "step_4" / "COMPLETE").unlink()  # as if it had been stopped after step 2
    (run / "summary.json").unlink()
    same(train(tmp_path, "many", f"model={model}", "cluster.gpus_per_node=2"), one)
