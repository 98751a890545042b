"""ChatCORE (nanochat, Karpathy 2025): one score of a chat model, the mean over tasks of (accuracy - baseline) /
(1 - baseline).

Questions are chats in the model's chat template. Multiple-choice answers are the letter with the largest logit; other answers
are generated. Invariant: results state how many of a task's items were evaluated.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from sft_hydra.data_prep.benchmark_adapters import LETTERS
from sft_hydra.errors import DataError
from sft_hydra.evaluation.chat import Chat, Prompt, Sampling
from sft_hydra.evaluation.chatcore_tasks import TASKS, Question
from sft_hydra.evaluation.parse import parse_answer
from sft_hydra.schema.eval import EvalConfig

MAX_NEW_TOKENS = 512

Progress = Callable[[int, int, str], None]  # called with (answers done, total, task)


@dataclass(frozen=True, slots=True)
class Answer:
    """One evaluated item, as written to the answer files."""

    question: str
    answer: str
    expected: str
    right: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Result of one task; `items` of its `of` items were evaluated."""

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
        """Accuracy above the baseline, (accuracy - baseline) / (1 - baseline)."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    @property
    def stderr(self) -> float | None:
        """Standard error of the accuracy; None for a single item."""
        return (self.accuracy * (1 - self.accuracy) / (self.items - 1)) ** 0.5 if self.items > 1 else None


@dataclass(frozen=True, slots=True)
class ChatCore:
    """Result of a ChatCORE evaluation."""

    scores: list[TaskScore]
    left_out: dict[str, str]
    """Requested tasks that were not run -> reason; they are not in the mean."""

    @property
    def metric(self) -> float:
        """The ChatCORE score: mean of the centred accuracies."""
        return _mean([score.centred for score in self.scores])

    @property
    def categorical(self) -> float | None:
        """Mean over the multiple-choice tasks; None if there are none."""
        centred = [score.centred for score in self.scores if score.categorical]
        return _mean(centred) if centred else None

    def metrics(self) -> dict[str, float]:
        """Values for a line of metrics.jsonl."""
        values = {"eval/chatcore": self.metric}
        if self.categorical is not None:
            values["eval/chatcore_categorical"] = self.categorical
        return values | {f"eval/chatcore/{score.task}": score.accuracy for score in self.scores}


def run_chatcore(chat: Chat, settings: EvalConfig, on_progress: Progress) -> ChatCore:
    """Evaluate the tasks of the config. DataError, before any generation, if a task's items cannot be read."""
    left_out = {}
    if "humaneval" in settings.chatcore_tasks and not settings.allow_code:
        left_out["humaneval"] = "it executes code written by the model; set eval.allow_code=true to allow that"
    names = [name for name in settings.chatcore_tasks if name not in left_out]
    questions, problems = {}, []
    for name in names:  # read all items before any is evaluated
        try:
            questions[name] = TASKS[name].read(settings.data_dir)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return ChatCore([_score(name, *questions[name], chat, settings, on_progress) for name in names], left_out)


def _score(
    name: str, questions: list[Question], origin: str, chat: Chat, settings: EvalConfig, on_progress: Progress
) -> TaskScore:
    categorical = questions[0].choices > 0
    limit = settings.chatcore_max_categorical if categorical else settings.chatcore_max_generative
    selected = questions if limit is None else _sample(questions, limit)
    done, total = 0, sum(max(question.choices, 1) for question in selected)

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total, name)

    if categorical:
        answers = _choose(chat, selected, after_batch)
    else:
        answers = _write(chat, selected, settings, after_batch)
    grades = TASKS[name].grade(selected, answers)
    kept = [
        Answer(question.text, answer, question.expected, right, note)
        for question, answer, (right, note) in zip(selected, answers, grades, strict=True)
    ]
    accuracy = sum(answer.right for answer in kept) / len(kept)
    return TaskScore(name, len(kept), len(questions), accuracy, TASKS[name].baseline, categorical, origin, kept)


def _choose(chat: Chat, questions: list[Question], after_batch: Callable[[int], None]) -> list[str]:
    """The most likely letter for each question."""
    letters = [chat.tokenizer.encode(letter) for letter in LETTERS[: max(question.choices for question in questions)]]
    if any(len(ids) != 1 for ids in letters):
        raise DataError(
            f"{chat.tokenizer.folder}: the letters A, B, ... are not a single token each, which multiple-choice tasks of "
            "ChatCORE require; remove these tasks from eval.chatcore_tasks"
        )
    pairs = []
    for question in questions:
        prompt = chat.prompt_ids(_prompt(question, thinking=False))
        pairs += [(prompt, ids) for ids in letters[: question.choices]]
    found = iter(chat.model.log_likelihoods(pairs, after_batch))
    values = [[next(found)[0] for _ in range(question.choices)] for question in questions]
    return [LETTERS[of_letters.index(max(of_letters))] for of_letters in values]


def _write(
    chat: Chat, questions: list[Question], settings: EvalConfig, after_batch: Callable[[int], None]
) -> list[str]:
    """Generated answers without reasoning."""
    prompts = [_prompt(question, settings.thinking) for question in questions]
    sampling = Sampling(settings.max_new_tokens or MAX_NEW_TOKENS)
    return [str(parse_answer(text)["content"]) for text in chat.answer(prompts, sampling, after_batch)]


def _prompt(question: Question, thinking: bool) -> Prompt:
    return Prompt([{"role": "user", "content": question.text}], thinking=thinking)


def _sample(questions: list[Question], limit: int) -> list[Question]:
    """A fixed random sample of at most `limit` questions."""
    return random.Random(0).sample(questions, min(limit, len(questions)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
