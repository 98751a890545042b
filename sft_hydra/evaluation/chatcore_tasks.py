"""The six tasks of ChatCORE: their questions as user messages, and the grading of answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sft_hydra.data_prep.benchmark_adapters import LETTERS, multiple_choice
from sft_hydra.data_prep.spelling import test_rows
from sft_hydra.evaluation.benchmarks import read_benchmark
from sft_hydra.evaluation.code_sandbox import run_programs
from sft_hydra.evaluation.humaneval import program_of

SPELLING_ITEMS = 256
GSM8K_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
SPELLING_NUMBER = re.compile(r"The answer is (\d+)")


@dataclass(frozen=True, slots=True)
class Question:
    """One item of a task."""

    text: str
    expected: str
    choices: int = 0
    """Number of choices; 0: the answer is generated."""
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """How a task's items are read and graded."""

    read: Callable[[str | None], tuple[list[Question], str]]
    """`eval.data_dir` -> (questions, their origin)."""
    baseline: float
    """Accuracy of random guessing."""
    grade: Callable[[list[Question], list[str]], list[tuple[bool, str]]]
    """(questions, answers) -> (correct, note) for each."""


def _mmlu(data_dir: str | None) -> tuple[list[Question], str]:
    found = read_benchmark("mmlu", "test", data_dir)
    return [
        Question(multiple_choice(row["question"], row["choices"]), LETTERS[row["answer"]], len(row["choices"]))
        for row in found.rows
    ], found.origin


def _arc(name: str) -> Callable[[str | None], tuple[list[Question], str]]:
    def read(data_dir: str | None) -> tuple[list[Question], str]:
        found = read_benchmark(name, "test", data_dir)
        questions = []
        for row in found.rows:
            labels, texts = row["choices"]["label"], row["choices"]["text"]  # labels may be 1, 2, ...
            expected = LETTERS[labels.index(row["answerKey"])]
            questions.append(Question(multiple_choice(row["question"], texts), expected, len(texts)))
        return questions, found.origin

    return read


def _gsm8k(data_dir: str | None) -> tuple[list[Question], str]:
    found = read_benchmark("gsm8k", "test", data_dir)
    return [Question(row["question"], last_number(GSM8K_NUMBER, row["answer"])) for row in found.rows], found.origin


def _humaneval(data_dir: str | None) -> tuple[list[Question], str]:
    found = read_benchmark("humaneval", "test", data_dir)
    return [Question(row["prompt"], "passes its tests", row=row) for row in found.rows], found.origin


def _spelling_bee(data_dir: str | None) -> tuple[list[Question], str]:
    return spelling_questions(), "generated"


def spelling_questions() -> list[Question]:
    """The fixed items of spelling_bee."""
    return [Question(question, last_number(SPELLING_NUMBER, answer)) for question, answer in test_rows(SPELLING_ITEMS)]


def last_number(pattern: re.Pattern[str], text: str) -> str:
    """The last match of `pattern` in `text`, without digit-group commas; empty if there is none."""
    found = pattern.findall(text)
    return found[-1].replace(",", "").rstrip(".") if found else ""


def _same_text(questions: list[Question], answers: list[str]) -> list[tuple[bool, str]]:
    return [(answer == question.expected, "") for question, answer in zip(questions, answers, strict=True)]


def _same_number(pattern: re.Pattern[str]) -> Callable[[list[Question], list[str]], list[tuple[bool, str]]]:
    def grade(questions: list[Question], answers: list[str]) -> list[tuple[bool, str]]:
        numbers = [last_number(pattern, answer) for answer in answers]
        return [
            (number == question.expected, f"read as {number}" if number else "no number found")
            for question, number in zip(questions, numbers, strict=True)
        ]

    return grade


def _passes(questions: list[Question], answers: list[str]) -> list[tuple[bool, str]]:
    programs = [program_of(question.row, answer) for question, answer in zip(questions, answers, strict=True)]
    return [(verdict == "passed", verdict) for verdict in run_programs(programs)]


TASKS = {
    "arc_easy": Task(_arc("arc_easy"), 0.25, _same_text),
    "arc_challenge": Task(_arc("arc_challenge"), 0.25, _same_text),
    "mmlu": Task(_mmlu, 0.25, _same_text),
    "gsm8k": Task(_gsm8k, 0.0, _same_number(GSM8K_NUMBER)),
    "humaneval": Task(_humaneval, 0.0, _passes),
    "spelling_bee": Task(_spelling_bee, 0.0, _same_number(SPELLING_NUMBER)),
}
