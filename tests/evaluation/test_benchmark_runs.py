"""Benchmarks of a run: while it trains, afterwards through runner=evaluate, and where their results can be seen."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft_hydra.cli import command
from sft_hydra.data_prep.benchmark_adapters import multiple_choice
from sft_hydra.errors import ConfigError
from sft_hydra.observe.run_report import write_report
from sft_hydra.paths import RunPaths

NAMES = ("Ada", "Bea", "Cleo", "Dora", "Eve", "Fay", "Gia", "Hal")
SHORT = [
    "name=run", "data.sample=80", "data.num_workers=1", "train.train_iters=4", "eval.exact_match.path=null",
    "eval.samples=[]", "eval.max_new_tokens=4", "export.auto=false",
]  # fmt: skip


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Its arguments, and the folder of a run that asked ChatCORE before, in the middle and after."""
    folder = tmp_path_factory.mktemp("run")
    items = [
        {
            "question": f"Which is {n}?",
            "choices": {"text": [f"{n}", "x", "y"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        }
        for n in range(6)
    ]
    (folder / "arc_easy_test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    always = [f"output_dir={folder}", "name=run", f"eval.data_dir={folder}"]
    wanted = ["eval.chatcore_every=2", "eval.chatcore_tasks=[arc_easy,humaneval,spelling_bee]"]
    limits = ["eval.chatcore_max_categorical=4", "eval.chatcore_max_generative=2"]
    best = ["checkpoint.interval=1", "checkpoint.keep_last=1", "checkpoint.keep_best=eval/chatcore/arc_easy"]
    assert command([*SHORT, *always, *wanted, *limits, *best]) == 0
    return always, folder / "run"


def test_chatcore_before_while_and_after_training(run: tuple[list[str], Path]) -> None:
    _, folder = run
    lines = [line for line in rows(folder / "metrics.jsonl") if "eval/chatcore" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]  # each checkpoint needs it, to know the best
    for line in lines:
        centred = [(line["eval/chatcore/arc_easy"] - 0.25) / 0.75, line["eval/chatcore/spelling_bee"]]
        assert line["eval/chatcore"] == pytest.approx(sum(centred) / 2)
    kept = json.loads((folder / "evaluation.json").read_text())
    for moment, line in (("before", lines[0]), ("after", lines[-1])):
        entry = kept[moment]["chatcore"]
        assert entry["value"] == line["eval/chatcore"]
        assert [(task["task"], task["items"], task["of"]) for task in entry["tasks"]] == [
            ("arc_easy", 4, 6),
            ("spelling_bee", 2, 256),
        ]
        answers = rows(folder / "answers" / moment / "chatcore_arc_easy.jsonl")
        assert sum(answer["right"] for answer in answers) / 4 == line["eval/chatcore/arc_easy"]
        assert "eval.allow_code" in entry["left_out"]["humaneval"]


def test_the_checkpoint_that_is_best_by_chatcore_is_kept(run: tuple[list[str], Path]) -> None:
    _, folder = run
    scores = {
        line["step"]: line["eval/chatcore/arc_easy"]
        for line in rows(folder / "metrics.jsonl")
        if "eval/chatcore" in line
    }
    kept = {int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")}
    assert max(scores[step] for step in kept) == max(scores[step] for step in (1, 2, 3, 4))


def test_the_report_shows_what_was_asked_and_what_was_not(run: tuple[list[str], Path]) -> None:
    _, folder = run
    page = write_report(RunPaths(folder)).read_text()
    assert "<h2>ChatCORE</h2>" in page
    assert "4 of 6" in page
    assert "humaneval is left out" in page
    assert "arc_easy_test.jsonl" in page
    assert "Which is 3?" in page


def test_tasks_of_the_harness_on_a_run(run: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    always, folder = run
    trained = (folder / "metrics.jsonl").read_text()
    assert command([*always, "runner=evaluate", "eval.tasks=[chatcore,spelling_bee]", "eval.max_items=3"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 256" in shown
    assert "mean of 2 of 3 tasks" in shown
    entry = json.loads((folder / "evaluation.json").read_text())["evaluate"]
    (score,) = entry["benchmarks"]["scores"]
    assert (score["task"], score["metric"], score["items"], score["of"]) == ("spelling_bee", "exact_match", 3, 256)
    assert entry["benchmarks"]["max_items"] == 3
    answers = rows(folder / "answers/evaluate/spelling_bee.jsonl")
    assert len(answers) == 3
    assert answers[0].keys() >= {"question", "answer", "expected", "exact_match"}
    page = (folder / "report.html").read_text()
    assert "Tasks of the lm-evaluation-harness" in page
    assert "3 of 256" in page
    assert (folder / "metrics.jsonl").read_text() == trained


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["runner=evaluate", "eval.tasks=[humaneval]"], "set eval.allow_code=true to run it in a sandbox"),
        (["runner=evaluate", "eval.tasks=[tasks/mine.yaml]"], "tasks/mine.yaml: no such file"),
        (["runner=evaluate", "eval.tasks=[gsm8k,gsm8k]"], "contains a task twice"),
        (["eval.data_dir=nowhere"], "eval.data_dir=nowhere: no such folder"),
        (
            ["eval.chatcore_every=2", "eval.data_dir=."],
            r"split of arc_easy(.*\n)+.*split of arc_challenge(.*\n)+.*of gsm8k",
        ),
        (["eval.chatcore_tasks=[arc,mmlu]"], "arc is not one of arc_easy"),
        (["eval.max_items=0"], "eval.max_items=0 must be at least 1"),
        (["checkpoint.keep_best=eval/chatcore"], "eval/chatcore is not a metric of this training"),
    ],
)
def test_what_cannot_be_is_refused_at_once(wrong: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        command([*SHORT, f"output_dir={tmp_path}", *wrong])


def test_who_has_learned_the_answers_by_heart_gets_them_all_and_asking_changes_no_loss(tmp_path: Path) -> None:
    """The prompt of an item is the prompt that training on such a chat has made, to the token."""
    items = [
        {"question": f"Who is {name}?", "choices": [f"{name}{n}" for n in range(4)], "subject": "people"}
        for name in NAMES
    ]
    items = [{**item, "answer": "ABCD"[number * 3 % 4]} for number, item in enumerate(items)]
    chats = [
        {"messages": [
            {"role": "user", "content": multiple_choice(item["question"], item["choices"])},  # type: ignore[arg-type]
            {"role": "assistant", "content": item["answer"]},
        ]}
        for item in items * 8
    ]  # fmt: skip
    for name, lines in (("mmlu_test", items), ("chats", chats)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    learn = [
        f"output_dir={tmp_path}", "model=tiny", "data=jsonl", f"data.path={tmp_path}/chats.jsonl", "seq_length=256",
        "data.split={train:1.0,valid:0.0,test:0.0}", "data.num_workers=1", "train.global_batch_size=4",
        "train.train_iters=24", "train.num_threads=1", "export.auto=false", "checkpoint.interval=null",
    ]  # fmt: skip
    wanted = ["eval.chatcore_every=8", "eval.chatcore_tasks=[mmlu]", f"eval.data_dir={tmp_path}"]
    assert command([*learn, "name=asked", *wanted]) == 0
    assert command([*learn, "name=left_alone"]) == 0
    asked, alone = (rows(tmp_path / name / "metrics.jsonl") for name in ("asked", "left_alone"))
    assert asked[-1]["eval/chatcore"] == 1.0
    assert [line["loss"] for line in asked if "loss" in line] == [line["loss"] for line in alone if "loss" in line]
