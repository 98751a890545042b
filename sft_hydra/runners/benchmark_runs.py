"""Runs ChatCORE and tasks of the lm-evaluation-harness on a live model, prints tables and writes all answers.

Writes the folder `answers/` of a run, one file per moment and task, and the two entries of evaluation.json with scores.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_hydra.evaluation.chat import Chat
from sft_hydra.evaluation.chatcore import ChatCore, run_chatcore
from sft_hydra.evaluation.harness import HarnessResult, Score, run_harness
from sft_hydra.observe.console import Console
from sft_hydra.process import signals
from sft_hydra.schema.config import SftConfig

EXAMPLES = 3  # answers of each task in evaluation.json, for the report

Scores = dict[str, float]  # a line of metrics.jsonl
Entry = dict[str, Any]  # the entry of one moment in evaluation.json


def chatcore(chat: Chat, cfg: SftConfig, console: Console, folder: Path, brief: bool = False) -> tuple[Scores, Entry]:
    """`eval/chatcore`, `eval/chatcore/<task>`, and the entry `chatcore`. StoppedError after a signal to stop. `brief`: print one
    line instead of the table."""
    with console.work("ChatCORE") as work:
        result = run_chatcore(chat, cfg.eval, _progress(work.update))
    for score in result.scores:
        _write_answers(folder / f"chatcore_{score.task}.jsonl", [asdict(answer) for answer in score.answers])
    if brief:
        tasks = ", ".join(f"{s.task} {_share(s.accuracy)} ({_items(s.items, s.of)})" for s in result.scores)
        console.say(f"ChatCORE {_share(result.metric)}: {tasks}")
    else:
        _show_chatcore(console, result)
    kept = [
        {
            "task": score.task,
            "items": score.items,
            "of": score.of,
            "value": score.accuracy,
            "stderr": score.stderr,
            "baseline": score.baseline,
            "centred": score.centred,
            "origin": score.origin,
            "examples": [asdict(answer) for answer in score.answers[:EXAMPLES]],
        }
        for score in result.scores
    ]
    entry = {"value": result.metric, "categorical": result.categorical, "left_out": result.left_out, "tasks": kept}
    return result.metrics(), {"chatcore": entry}


def harness(chat: Chat, cfg: SftConfig, console: Console, folder: Path) -> tuple[Scores, Entry]:
    """`eval/<task>/<metric>` of `eval.tasks`, and the entry `benchmarks`."""
    with console.work("tasks") as work:
        result = run_harness(chat, cfg, _progress(work.update), console.note)
    for task, answers in result.answers.items():
        _write_answers(folder / f"{_file_name(task)}.jsonl", answers)
    _show_harness(console, result)
    settings = cfg.eval
    entry = {
        "scores": [{**asdict(score), "centred": score.centred} for score in result.scores],
        "shortened_prompts": result.shortened,
        "num_fewshot": settings.num_fewshot,
        "max_items": settings.max_items,
        "max_new_tokens": settings.max_new_tokens,
        "chat_template": settings.chat_template,
        "thinking": settings.thinking,
        "examples": {task: answers[:EXAMPLES] for task, answers in result.answers.items()},
    }
    return {f"eval/{score.task}/{score.metric}": score.value for score in result.scores}, {"benchmarks": entry}


def _show_chatcore(console: Console, result: ChatCore) -> None:
    rows = [
        (
            s.task,
            _items(s.items, s.of),
            _share(s.accuracy),
            _share(s.stderr),
            _share(s.baseline),
            _share(s.centred),
            s.origin,
        )
        for s in result.scores
    ]
    title = f"mean of {len(result.scores)} of {len(result.scores) + len(result.left_out)} tasks"
    average = ("ChatCORE", "", "", "", "", _share(result.metric), title)
    console.table("ChatCORE", ["task", "items", "accuracy", "±", "baseline", "centred", "from"], [*rows, average])
    for task, why in result.left_out.items():
        console.say(f"{task} skipped in ChatCORE: {why}", style="yellow")


def _show_harness(console: Console, result: HarnessResult) -> None:
    columns = ["task", "items", "metric", "score", "±", "baseline", "centred", "from"]
    console.table("lm-evaluation-harness", columns, [_row(score) for score in result.scores])
    if result.shortened:
        console.say(f"{result.shortened} prompts truncated on the left to the model's context length", style="yellow")


def _row(score: Score) -> Sequence[str]:
    form: Callable[[float | None], str] = _share if score.baseline is not None else _figure
    return (
        score.task,
        _items(score.items, score.of),
        score.metric,
        form(score.value),
        form(score.stderr),
        _share(score.baseline),
        _share(score.centred),
        score.origin,
    )


def _items(items: int, of: int) -> str:
    return f"{items:,}" if items == of else f"{items:,} of {of:,}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:z.1%}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:z.4g}"


def _progress(show: Callable[[float, float | None, str], None]) -> Callable[[int, int, str], None]:
    def on_progress(done: int, total: int, what: str) -> None:
        show(done, total, f"{what} {done:,} of {total:,}")
        if signals.stop_requested():
            raise signals.StoppedError(f"stopped at {what} {done:,} of {total:,}; rerun to restart the evaluation")

    return on_progress


def _write_answers(path: Path, answers: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(answer, ensure_ascii=False, default=str) + "\n" for answer in answers]
    path.write_text("".join(lines), encoding="utf-8", errors="replace")


def _file_name(task: str) -> str:
    return Path(task).stem if task.endswith((".yaml", ".yml")) else task.strip("/").replace("/", "_")
