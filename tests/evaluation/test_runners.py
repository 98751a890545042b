"""runner=evaluate and runner=generate on a run of the tiny model: what is shown, returned and written."""

import json

import pytest

from sft_hydra.cli import command


@pytest.fixture(scope="module")
def run(tmp_path_factory, small):
    """Arguments of a run that has trained for two steps."""
    folder = tmp_path_factory.mktemp("run")
    arguments = [f"output_dir={folder}", "name=small"]
    assert command([*arguments, *small]) == 0
    return arguments, folder / "small"


@pytest.fixture(scope="module")
def small():
    return [
        "data.sample=80", "train.train_iters=2", "eval.exact_match.max_items=2", "eval.exact_match.max_new_tokens=8",
        "eval.sample_tokens=8", "data.split={train:0.8,valid:0.2,test:0.0}", "data.num_workers=1",
    ]  # fmt: skip


def test_training_keeps_what_it_evaluated_before_and_after(run):
    _, folder = run
    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["before"]["tasks"].keys() == kept["after"]["tasks"].keys()
    samples = json.loads((folder / "samples.json").read_text())
    assert [s["prompt"] for s in samples["before"]] == [s["prompt"] for s in samples["after"]]
    assert len(samples["after"]) == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "eval/exact_match" in line]) == 2


def test_evaluate_uses_the_latest_checkpoint(run, capsys):
    arguments, folder = run
    assert command([*arguments, "runner=evaluate"]) == 0
    shown = capsys.readouterr().out
    assert "step_2" in shown
    assert "calculator" in shown
    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["evaluate"]["tasks"] == kept["after"]["tasks"]
    assert kept["evaluate"]["val/loss"] > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [line["val/bpb"] for line in lines if "val/bpb" in line]
    assert len(measured) == 2
    assert kept["evaluate"]["val/bpb"] == pytest.approx(measured[-1], rel=1e-6)


def test_generate_answers_prompts_and_files(run, tmp_path, capsys):
    arguments, _ = run
    (tmp_path / "prompts.txt").write_text('Spell "fox".\n')
    assert command([
        *arguments, "runner=generate", "generate.prompts=[Who am I?]", f"generate.prompt_file={tmp_path / 'prompts.txt'}",
        "generate.max_new_tokens=4",
    ]) == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "> Who am I?" in shown
    assert '> Spell "fox".' in shown


def test_a_conversation_at_the_terminal_ends_with_an_empty_line(run, monkeypatch, capsys):
    arguments, _ = run
    typed = iter(["Hello", "And now?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert command([*arguments, "runner=generate", "generate.interactive=true", "generate.max_new_tokens=4"]) == 0
    assert "step_2" in capsys.readouterr().out
    assert next(typed, None) is None


def test_generate_without_prompts_says_how_to_give_them(run):
    arguments, _ = run
    with pytest.raises(Exception, match=r"generate\.interactive=true"):
        command([*arguments, "runner=generate"])
