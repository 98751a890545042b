"""Benchmark results of evaluation.json as tables for the report."""

import json
from dataclasses import dataclass
from typing import Any

MOMENTS = ("before", "after", "evaluate")


@dataclass(frozen=True, slots=True)
class ChatCoreTable:
    """`rows`: task, items, origin, baseline, and the accuracy at each of `moments`; None if it was not evaluated then."""

    moments: list[str]
    rows: list[dict[str, Any]]
    values: list[float]
    """ChatCORE score at each moment."""
    left_out: dict[str, str]
    examples: list[str]


def chatcore_table(evaluation: dict[str, Any]) -> ChatCoreTable | None:
    """The ChatCORE table; None if ChatCORE was never evaluated."""
    moments = [moment for moment in MOMENTS if "chatcore" in evaluation.get(moment, {})]
    if not moments:
        return None
    entries = [evaluation[moment]["chatcore"] for moment in moments]
    found = [{task["task"]: task for task in entry["tasks"]} for entry in entries]
    rows = []
    for name in dict.fromkeys(name for tasks in found for name in tasks):
        last = [tasks[name] for tasks in found if name in tasks][-1]
        scores = [tasks[name]["value"] if name in tasks else None for tasks in found]
        rows.append({**last, "items": items(last), "scores": scores})
    examples = [_as_text(example, row["task"]) for row in rows for example in row["examples"]]
    return ChatCoreTable(moments, rows, [entry["value"] for entry in entries], entries[-1]["left_out"], examples)


def harness_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores of `eval.tasks`, formatted."""
    scores = evaluation.get("evaluate", {}).get("benchmarks", {}).get("scores", [])
    rows = []
    for score in scores:
        form = "{:.4g}" if score["baseline"] is None else "{:.1%}"
        formed = {
            key: "" if score[key] is None else form.format(score[key])
            for key in ("value", "stderr", "baseline", "centred")
        }
        rows.append({**score, **formed, "items": items(score)})
    return rows


def harness_examples(evaluation: dict[str, Any]) -> list[str]:
    """Example answers of `eval.tasks` as JSON text."""
    kept = evaluation.get("evaluate", {}).get("benchmarks", {}).get("examples", {})
    return [_as_text(example, task) for task, examples in kept.items() for example in examples]


def items(score: dict[str, Any]) -> str:
    """Number of evaluated items, with the total if not all were evaluated: `24 of 1,319`."""
    return f"{score['items']:,}" + ("" if score["items"] == score["of"] else f" of {score['of']:,}")


def _as_text(example: dict[str, Any], task: str) -> str:
    return json.dumps({"task": task, **example}, indent=1, ensure_ascii=False)
