"""Evaluates `eval.tasks` with the lm-evaluation-harness (the extra `eval`) on a model in memory.

Invariant: every score states how many of how many items were evaluated; all answers are kept.
"""

import io
import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

from sft_hydra.errors import ConfigError
from sft_hydra.evaluation.chat import Chat
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.eval import EvalConfig

FEWSHOT_SEED = 1234  # the harness's default
EXPECTED_WARNINGS = ("Custom kwargs can be passed", "num_fewshot")  # parts of harness warnings that do not apply here
MULTIPLE_CHOICE = ("acc", "acc_norm", "acc_bytes")  # metrics with a guessing baseline of 1 / choices
GENERATED = ("exact_match", "pass@1")  # metrics with a guessing baseline of 0


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of a task; `baseline` is the score of random guessing, None if the metric is not an accuracy."""

    task: str
    metric: str
    value: float
    stderr: float | None
    baseline: float | None
    items: int
    of: int
    origin: str

    @property
    def centred(self) -> float | None:
        """(value - baseline) / (1 - baseline); None without a baseline."""
        return None if self.baseline is None else (self.value - self.baseline) / (1 - self.baseline)


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """Scores and answers of all tasks."""

    scores: list[Score]
    answers: dict[str, list[dict[str, Any]]]
    """Entry of `eval.tasks` -> question, answer and expected answer of every item."""
    shortened: int
    """Number of prompts truncated on the left to the model's context length."""


def check_tasks(settings: EvalConfig) -> None:
    """ConfigError if the lm-evaluation-harness is not installed, or for unknown task names."""
    try:
        import lm_eval  # noqa: F401

        from sft_hydra.evaluation.harness_tasks import check_names
    except ModuleNotFoundError as problem:
        raise ConfigError(
            f"eval.tasks needs the lm-evaluation-harness, and {problem.name} is not installed: "
            "pip install 'lm-eval>=0.4.13,<0.5' (the extra `eval`; eval.tasks=[chatcore] does not need it)"
        ) from None
    check_names(settings)


def run_harness(
    chat: Chat, cfg: SftConfig, on_progress: Callable[[int, int, str], None], note: Callable[[str], None]
) -> HarnessResult:
    """Evaluate all tasks of the config. `note` receives the library's warnings. ConfigError if it is not installed."""
    check_tasks(cfg.eval)
    from lm_eval import evaluate

    from sft_hydra.evaluation.harness_model import HarnessModel
    from sft_hydra.evaluation.harness_tasks import load_suites

    settings = cfg.eval
    logger, handler = logging.getLogger("lm_eval"), _Noted(note)
    logger.addHandler(handler)
    try:
        with redirect_stderr(io.StringIO()):  # hide the libraries' progress bars; ours is shown
            suites = load_suites(settings)
            scores, answers, shortened = [], {}, 0
            for suite in suites:
                generates = suite.tasks[0].OUTPUT_TYPE == "generate_until"
                model = HarnessModel(chat, thinking=settings.thinking and generates, on_progress=on_progress)
                for task in suite.tasks:
                    _set_fewshot(task, settings.num_fewshot)
                found = evaluate(
                    lm=model,
                    task_dict={"tasks": {task.task_name: task for task in suite.tasks}},
                    samples=_chosen(suite.tasks, settings.max_items),
                    apply_chat_template=settings.chat_template,
                    fewshot_as_multiturn=settings.chat_template,
                )
                of = sum(len(task.eval_docs) for task in suite.tasks)
                scores += _scores(suite.name, found, of, suite.origin)
                answers[suite.name] = [_answer(row) for rows in found["samples"].values() for row in rows]
                shortened += model.shortened
    finally:
        logger.removeHandler(handler)
    return HarnessResult(scores, answers, shortened)


class _Noted(logging.Handler):
    """Sends the library's warnings to the run's log."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on, unless it is expected."""
        if not any(text in record.getMessage() for text in EXPECTED_WARNINGS):
            self.note(f"lm-eval: {record.getMessage()}")


def _set_fewshot(task: Any, num_fewshot: int | None) -> None:
    """As in the harness: a task with 0 examples keeps 0; one without a number gets `num_fewshot`, 0 by default."""
    default = task.get_config("num_fewshot")
    if default is None or (default and num_fewshot is not None):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _chosen(tasks: list[Any], max_items: int | None) -> dict[str, list[int]] | None:
    """Task -> indices of the items to evaluate: the first ones, an equal share of `max_items` per task, at least one."""
    if max_items is None:
        return None
    share = max(1, round(max_items / len(tasks)))
    return {task.task_name: list(range(min(share, len(task.eval_docs)))) for task in tasks}


def _scores(name: str, found: dict[str, Any], of: int, origin: str) -> list[Score]:
    """Metrics of a suite: means over the tasks that have them, weighted by number of items."""
    counts = {task: len({row["doc_id"] for row in rows}) for task, rows in found["samples"].items()}
    results = found["results"]
    keys = [key for task in counts for key in results[task] if "," in key and "_stderr," not in key]
    scores = []
    for key in dict.fromkeys(keys):
        metric, _, filtered = key.partition(",")
        sizes = {task: count for task, count in counts.items() if key in results[task]}
        items = sum(sizes.values())
        errors = {task: results[task].get(f"{metric}_stderr,{filtered}") for task in sizes}
        stderr = None
        if all(isinstance(error, float) for error in errors.values()):
            stderr = sum((errors[task] * size) ** 2 for task, size in sizes.items()) ** 0.5 / items
        value = float(sum(results[task][key] * size for task, size in sizes.items()) / items)
        shown = metric if filtered == "none" else f"{metric} ({filtered})"
        scores.append(Score(name, shown, value, stderr, _baseline(metric, found), items, of, origin))
    return scores


def _baseline(metric: str, found: dict[str, Any]) -> float | None:
    if metric in MULTIPLE_CHOICE:
        choices = [len(row["arguments"]) for rows in found["samples"].values() for row in rows]
        return sum(1 / count for count in choices) / len(choices)
    return 0.0 if metric in GENERATED else None


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """One item for the answer files. For multiple choice: the choices, their log likelihoods, and the most likely one."""
    item = {"question": row["arguments"][0][0], "expected": row["target"]}
    item |= {metric: row[metric] for metric in row["metrics"]}
    if isinstance(row["resps"][0][0], str):
        item["answer"] = row["resps"][0][0]
        if row["filter"] != "none":
            item |= {"filter": row["filter"], "read_as": row["filtered_resps"][0]}
    elif len(row["arguments"]) > 1:
        values = [resps[0][0] for resps in row["resps"]]
        choices = [arguments[1] for arguments in row["arguments"]]
        item |= {"answer": choices[values.index(max(values))], "log_likelihoods": values, "choices": choices}
    else:
        item["answer"] = row["filtered_resps"][0]
    return item
