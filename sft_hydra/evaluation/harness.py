"""`eval.tasks` through the lm-evaluation-harness (the extra `eval`), answered by a live model.

Invariant: every score says on how many items of how many it stands, and which answers made it.
"""

import io
import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

from sft_hydra.errors import ConfigError
from sft_hydra.evaluation.chat import Chat
from sft_hydra.schema.config import EvalConfig, SftConfig

FEWSHOT_SEED = 1234  # the harness's own
USUAL = ("Custom kwargs can be passed", "num_fewshot")  # in warnings about what is meant to be so here
GUESSED = ("acc", "acc_norm", "acc_bytes")  # metrics of a multiple choice that guessing scores on too
RIGHT = ("exact_match", "pass@1")  # shares of right answers that guessing does not get


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of a task; `baseline` is what guessing gets, None where the figure is no share of right answers."""

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
        return None if self.baseline is None else (self.value - self.baseline) / (1 - self.baseline)


@dataclass(frozen=True, slots=True)
class HarnessResult:
    scores: list[Score]
    answers: dict[str, list[dict[str, Any]]]
    """Of each entry of `eval.tasks`, what was asked, answered and expected, item by item."""
    shortened: int
    """Prompts that lost their beginning because the model takes no more."""


def check_tasks(wanted: EvalConfig) -> None:
    """ConfigError without the library, or for names that it does not have."""
    try:
        import lm_eval  # noqa: F401

        from sft_hydra.evaluation.harness_tasks import check_names
    except ModuleNotFoundError as problem:
        raise ConfigError(
            f"eval.tasks needs the lm-evaluation-harness, and {problem.name} is not installed: "
            "pip install 'lm-eval>=0.4.13,<0.5' (the extra `eval`; eval.tasks=[chatcore] does not need it)"
        ) from None
    check_names(wanted)


def run_harness(
    chat: Chat, cfg: SftConfig, on_progress: Callable[[int, int, str], None], note: Callable[[str], None]
) -> HarnessResult:
    """All tasks of the config. `note` gets what the library says about them. ConfigError without the library."""
    check_tasks(cfg.eval)
    from lm_eval import evaluate

    from sft_hydra.evaluation.harness_model import HarnessModel
    from sft_hydra.evaluation.harness_tasks import load_suites

    wanted = cfg.eval
    logger, handler = logging.getLogger("lm_eval"), _Noted(note)
    logger.addHandler(handler)
    try:
        with redirect_stderr(io.StringIO()):  # progress bars of the libraries; ours says how far it is
            suites = load_suites(wanted)
            scores, answers, shortened = [], {}, 0
            for suite in suites:
                generates = suite.tasks[0].OUTPUT_TYPE == "generate_until"
                model = HarnessModel(chat, thinking=wanted.thinking and generates, on_progress=on_progress)
                for task in suite.tasks:
                    _set_fewshot(task, wanted.num_fewshot)
                found = evaluate(
                    lm=model,
                    task_dict={"tasks": {task.task_name: task for task in suite.tasks}},
                    samples=_chosen(suite.tasks, wanted.max_items),
                    apply_chat_template=wanted.chat_template,
                    fewshot_as_multiturn=wanted.chat_template,
                )
                of = sum(len(task.eval_docs) for task in suite.tasks)
                scores += _scores(suite.name, found, of, suite.origin)
                answers[suite.name] = [_answer(row) for rows in found["samples"].values() for row in rows]
                shortened += model.shortened
    finally:
        logger.removeHandler(handler)
    return HarnessResult(scores, answers, shortened)


class _Noted(logging.Handler):
    """Warnings of the library go to the log of the run."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        if not any(usual in record.getMessage() for usual in USUAL):
            self.note(f"lm-eval: {record.getMessage()}")


def _set_fewshot(task: Any, wanted: int | None) -> None:
    """As the harness does: a task that says 0 examples keeps to it, one that says nothing gets none."""
    own = task.get_config("num_fewshot")
    if own is None or (own and wanted is not None):
        task.set_config(key="num_fewshot", value=wanted or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _chosen(tasks: list[Any], max_items: int | None) -> dict[str, list[int]] | None:
    """Numbers of the items that are asked: the first, each task of a suite its share of `max_items`, at least one."""
    if max_items is None:
        return None
    share = max(1, round(max_items / len(tasks)))
    return {task.task_name: list(range(min(share, len(task.eval_docs)))) for task in tasks}


def _scores(name: str, found: dict[str, Any], of: int, origin: str) -> list[Score]:
    """The figures of a suite: means over the tasks that have them, weighted by their items."""
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
    if metric in GUESSED:
        choices = [len(row["arguments"]) for rows in found["samples"].values() for row in rows]
        return sum(1 / count for count in choices) / len(choices)
    return 0.0 if metric in RIGHT else None


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """One item for inspection. Of a multiple choice: the choices with their log likelihoods, the likeliest as answer."""
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
