"""Conversations that failed the exact-match evaluation, for the table of the report."""

from typing import Any

from sft_hydra.observe.transcript import as_text


def miss_rows(misses: list[dict[str, Any]]) -> list[dict[str, str]]:
    """For each: the task, the turns before the one that does not match, the expected turn, and the generated one."""
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
