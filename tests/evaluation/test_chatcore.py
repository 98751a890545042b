"""ChatCORE: what is asked, how answers are graded, and what the figure says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.answering import chat_with

from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.data_prep import spelling
from sft_hydra.errors import DataError
from sft_hydra.evaluation.benchmarks import BENCHMARKS, read_benchmark
from sft_hydra.evaluation.chat import Prompt
from sft_hydra.evaluation.chatcore import ChatCore, TaskScore, run_chatcore
from sft_hydra.evaluation.chatcore_tasks import TASKS, Question
from sft_hydra.models.build import as_transformers, build_model
from sft_hydra.models.init_weights import init_weights
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.eval import CHATCORE_TASKS, EvalConfig


@pytest.fixture(scope="module")
def model() -> tuple[Any, ChatTokenizer]:
    tokenizer = load_tokenizer(SftConfig())
    architecture = {
        "model_type": "qwen3", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    }  # fmt: skip
    ours = build_model(architecture, "cpu", torch.float32)
    init_weights(ours, seed=0, std=1.0)
    return as_transformers(ours), tokenizer


def asked(model: tuple[Any, ChatTokenizer], **wanted: Any) -> ChatCore:
    cfg = SftConfig(eval=EvalConfig(batch_size=16, max_new_tokens=4, **wanted))
    return run_chatcore(chat_with(*model, cfg), cfg.eval, lambda done, total, task: None)


def score(task: str, accuracy: float, baseline: float) -> TaskScore:
    return TaskScore(task, 11, 20, accuracy, baseline, baseline > 0, "file", [])


def test_the_figure_is_the_mean_of_accuracies_centred_on_guessing() -> None:
    result = ChatCore([score("mmlu", 0.25, 0.25), score("arc_easy", 1.0, 0.25), score("gsm8k", 0.5, 0.0)], {})
    assert result.metric == pytest.approx((0 + 1 + 0.5) / 3)
    assert result.categorical == pytest.approx(0.5)
    assert result.metrics()["eval/chatcore/mmlu"] == 0.25
    assert result.scores[2].stderr == pytest.approx((0.25 / 10) ** 0.5)
    assert {name: task.baseline for name, task in TASKS.items()} == dict(
        zip(CHATCORE_TASKS, (0.25, 0.25, 0.25, 0.0, 0.0, 0.0), strict=True)
    )


def test_a_choice_is_the_letter_with_the_largest_logit(model: tuple[Any, ChatTokenizer], shared: Path) -> None:
    folder = str(shared / "assets/eval")
    result = asked(model, chatcore_tasks=["mmlu"], data_dir=folder, chatcore_max_categorical=20)
    (mmlu,) = result.scores
    assert (mmlu.items, mmlu.of, mmlu.origin) == (20, 1531, "mmlu_val.jsonl")
    chat = chat_with(*model, SftConfig())
    letters = [chat.tokenizer.encode(letter)[0] for letter in "ABCD"]
    for answer in mmlu.answers:
        ids = chat.prompt_ids(Prompt([{"role": "user", "content": answer.question}]))
        logits = model[0](torch.tensor([ids])).logits[0, -1, letters]
        assert answer.answer == "ABCD"[int(logits.argmax())]
        assert answer.right == (answer.answer == answer.expected)
    assert mmlu.accuracy == sum(answer.right for answer in mmlu.answers) / 20


def test_the_limited_items_are_the_same_ones_from_all_over_the_task(
    model: tuple[Any, ChatTokenizer], shared: Path
) -> None:
    wanted = {"chatcore_tasks": ["mmlu"], "data_dir": str(shared / "assets/eval"), "chatcore_max_categorical": 12}
    questions = [[answer.question for answer in asked(model, **wanted).scores[0].answers] for _ in range(2)]
    assert questions[0] == questions[1]
    rows = read_benchmark("mmlu", "test", wanted["data_dir"]).rows
    subjects = {row["question"]: row["subject"] for row in rows}
    assert len({subjects[question.split("\n\nA. ")[0]] for question in questions[0]}) > 6


def test_generative_tasks_and_what_is_left_out(model: tuple[Any, ChatTokenizer], shared: Path) -> None:
    result = asked(
        model,
        chatcore_tasks=["gsm8k", "humaneval", "spelling_bee"],
        data_dir=str(shared / "assets/eval"),
        chatcore_max_generative=3,
    )
    assert [(s.task, s.items, s.of) for s in result.scores] == [("gsm8k", 3, 1319), ("spelling_bee", 3, 256)]
    assert "eval.allow_code" in result.left_out["humaneval"]
    assert result.categorical is None


@pytest.mark.parametrize(
    ("task", "answer", "right"),
    [
        ("gsm8k", "2 + 2 = 4\n#### 1,234", True),
        ("gsm8k", "#### 1234.", True),
        ("gsm8k", "1234", False),
        ("gsm8k", "#### -1234", False),
        ("spelling_bee", "1. a\n2. b\nThe answer is 1234.", True),
        ("spelling_bee", "The answer is 1234. No: The answer is 2.", False),
        ("mmlu", "1234", True),
    ],
)
def test_grading(task: str, answer: str, right: bool) -> None:
    [(found, _)] = TASKS[task].grade([Question("?", "1234")], [answer])
    assert found is right


def test_answers_of_the_training_data_are_right() -> None:
    questions, origin = TASKS["spelling_bee"].read(None)
    answers = [answer for _, answer in spelling.test_rows(len(questions))]
    assert all(right for right, _ in TASKS["spelling_bee"].grade(questions, answers))
    assert origin == "generated"
    trained = {row["messages"][0]["content"] for row in spelling.rows("spelling_bee", 0, 5000)}
    assert len(trained & {question.text for question in questions}) < 5


def test_answers_of_gsm8k_are_right_by_its_own_solutions(shared: Path) -> None:
    folder = str(shared / "assets/eval")
    questions, _ = TASKS["gsm8k"].read(folder)
    solutions = [row["answer"] for row in read_benchmark("gsm8k", "test", folder).rows]
    assert all(right for right, _ in TASKS["gsm8k"].grade(questions, solutions))
    assert all(question.expected for question in questions)


def test_labels_of_arc_may_be_numbers(tmp_path: Path) -> None:
    row = {"question": "?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    (tmp_path / "arc_easy.jsonl").write_text(json.dumps(row))
    ([question], origin) = TASKS["arc_easy"].read(str(tmp_path))
    assert (question.expected, question.choices, origin) == ("B", 2, "arc_easy.jsonl")


def test_what_is_not_there_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test split of mmlu; expected mmlu_test, mmlu_validation, mmlu_val, mmlu"):
        read_benchmark("mmlu", "test", str(tmp_path))
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(DataError, match=r"gsm8k_test.jsonl:1: missing field\(s\) answer"):
        read_benchmark("gsm8k", "test", str(tmp_path))


def test_without_a_folder_rows_come_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a data set repository on this disk, through the hub's own loading code."""
    (tmp_path / "rows.jsonl").write_text('{"question": "2 + 2?", "answer": "It is 4.\\n#### 4"}\n')
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: rows.jsonl\n---\n"
    )
    monkeypatch.setitem(BENCHMARKS, "gsm8k", replace(BENCHMARKS["gsm8k"], hub=str(tmp_path)))
    read_benchmark.cache_clear()
    [question], origin = TASKS["gsm8k"].read(None)
    assert (question.text, question.expected, origin) == ("2 + 2?", "4", str(tmp_path))
    monkeypatch.setitem(BENCHMARKS, "gsm8k", replace(BENCHMARKS["gsm8k"], subset="socratic"))
    read_benchmark.cache_clear()
    with pytest.raises(DataError, match=r"(cannot be loaded|no files match)(.*\n)*.*eval.data_dir"):
        TASKS["gsm8k"].read(None)
    read_benchmark.cache_clear()
