"""The conversations of exact match that went wrong, for the table of the report."""

from typing import Any

from sft_hydra.observe.transcript import as_text


def miss_rows(misses: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Of each: the task, what was said up to the turn that does not match, what should have come, and what came."""
    return [
        {
            "task": miss["task"],
            "before": "\n".join(_turn(message) for message in miss["messages"][:-1]),
            "expected": as_text([miss["expected"]]),
            "written": as_text(miss["messages"][-1:]),
        }
        for miss in misses
    ]


def _turn(message: dict[str, Any]) -> str:
    text = as_text([message])
    return text if message["role"] == "tool" else f"{message['role']}: {text}"
