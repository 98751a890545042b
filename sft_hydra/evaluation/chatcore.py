"""ChatCORE: one figure for what a chat model can do, the mean over tasks of (accuracy - baseline) / (1 - baseline).

Questions are asked as chats, in the model's own template. Of a multiple choice only the logits of the letters count; other
answers are generated. Invariant: how many items of how many were asked is part of the result.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from sft_hydra.data_prep.benchmark_adapters import LETTERS
from sft_hydra.errors import DataError
from sft_hydra.evaluation.chat import Chat, Prompt, Sampling
from sft_hydra.evaluation.chatcore_tasks import TASKS, Question
from sft_hydra.evaluation.likelihood import log_likelihoods
from sft_hydra.evaluation.parse import parse_answer
from sft_hydra.schema.config import EvalConfig

MAX_NEW_TOKENS = 512

Progress = Callable[[int, int, str], None]  # (answers, all of them, task) while a task goes on


@dataclass(frozen=True, slots=True)
class Answer:
    """One item, as the files for inspection show it."""

    question: str
    answer: str
    expected: str
    right: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class TaskScore:
    task: str
    items: int
    of: int
    accuracy: float
    baseline: float
    categorical: bool
    origin: str
    answers: list[Answer]

    @property
    def centred(self) -> float:
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    @property
    def stderr(self) -> float | None:
        """Of the accuracy, as of a sample of all such questions."""
        return (self.accuracy * (1 - self.accuracy) / (self.items - 1)) ** 0.5 if self.items > 1 else None


@dataclass(frozen=True, slots=True)
class ChatCore:
    scores: list[TaskScore]
    left_out: dict[str, str]
    """Tasks that were asked for and not run, and why; they are not in the mean."""

    @property
    def metric(self) -> float:
        return _mean([score.centred for score in self.scores])

    @property
    def categorical(self) -> float | None:
        centred = [score.centred for score in self.scores if score.categorical]
        return _mean(centred) if centred else None

    def metrics(self) -> dict[str, float]:
        """The values of a line of metrics.jsonl."""
        values = {"eval/chatcore": self.metric}
        if self.categorical is not None:
            values["eval/chatcore_categorical"] = self.categorical
        return values | {f"eval/chatcore/{score.task}": score.accuracy for score in self.scores}


def run_chatcore(chat: Chat, wanted: EvalConfig, on_progress: Progress) -> ChatCore:
    """Ask everything that the config wants. DataError if a task's questions are not to be had."""
    left_out = {}
    if "humaneval" in wanted.chatcore_tasks and not wanted.allow_code:
        left_out["humaneval"] = "it runs code that the model writes, which eval.allow_code=true allows"
    names = [name for name in wanted.chatcore_tasks if name not in left_out]
    questions, problems = {}, []
    for name in names:  # all, before anything is asked
        try:
            questions[name] = TASKS[name].read(wanted.data_dir)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return ChatCore([_score(name, *questions[name], chat, wanted, on_progress) for name in names], left_out)


def _score(
    name: str, questions: list[Question], origin: str, chat: Chat, wanted: EvalConfig, on_progress: Progress
) -> TaskScore:
    categorical = questions[0].choices > 0
    limit = wanted.chatcore_max_categorical if categorical else wanted.chatcore_max_generative
    asked = questions if limit is None else _sample(questions, limit)
    done, total = 0, sum(max(question.choices, 1) for question in asked)

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total, name)

    if categorical:
        answers = _choose(chat, asked, wanted.batch_size, after_batch)
    else:
        answers = _write(chat, asked, wanted, after_batch)
    grades = TASKS[name].grade(asked, answers)
    kept = [
        Answer(question.text, answer, question.expected, right, note)
        for question, answer, (right, note) in zip(asked, answers, grades, strict=True)
    ]
    accuracy = sum(answer.right for answer in kept) / len(kept)
    return TaskScore(name, len(kept), len(questions), accuracy, TASKS[name].baseline, categorical, origin, kept)


def _choose(chat: Chat, questions: list[Question], batch_size: int, after_batch: Callable[[int], None]) -> list[str]:
    """The likeliest letter of each."""
    letters = [chat.tokenizer.encode(letter) for letter in LETTERS[: max(question.choices for question in questions)]]
    if any(len(ids) != 1 for ids in letters):
        raise DataError(
            f"{chat.tokenizer.folder}: the letters A, B, ... are not one token each; ChatCORE compares these"
        )
    pairs = []
    for question in questions:
        prompt = chat.prompt_ids(_prompt(question, thinking=False))
        pairs += [(prompt, ids) for ids in letters[: question.choices]]
    found = iter(log_likelihoods(chat.hf_model, pairs, batch_size, after_batch))
    values = [[next(found)[0] for _ in range(question.choices)] for question in questions]
    return [LETTERS[of_letters.index(max(of_letters))] for of_letters in values]


def _write(chat: Chat, questions: list[Question], wanted: EvalConfig, after_batch: Callable[[int], None]) -> list[str]:
    """What the model answers, without its reasoning."""
    prompts = [_prompt(question, wanted.thinking) for question in questions]
    sampling = Sampling(wanted.max_new_tokens or MAX_NEW_TOKENS)
    return [str(parse_answer(text)["content"]) for text in chat.answer(prompts, sampling, after_batch)]


def _prompt(question: Question, thinking: bool) -> Prompt:
    return Prompt([{"role": "user", "content": question.text}], thinking=thinking)


def _sample(questions: list[Question], limit: int) -> list[Question]:
    """Always the same ones, from all over the task."""
    return random.Random(0).sample(questions, min(limit, len(questions)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
