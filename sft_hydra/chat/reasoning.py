"""Reads the reasoning of a message: under any of KEYS, as text, parts or an object, or inside its content.

Invariant: reasoning is found or RowError is raised; an answer that only quotes `</think>` is not split.
"""

import re
from typing import Any

from sft_hydra.errors import RowError

KEYS = (
    *("reasoning_content", "reasoning", "thinking", "reasoning_text", "thought", "thoughts", "chain_of_thought"),
    *("reasoning_details", "thinking_blocks"),
)
TEXTS = (
    "text",
    "thinking",
    "reasoning",
    "content",
    "reasoning_content",
    "reasoning_text",
    "reasoningText",
    "summary",
    "value",
)
OPENED = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
# reasoning whose opening tag is in the prompt: models close it on a separate line, followed by a blank line
UNOPENED = re.compile(r"(.*?)\n?</think>(?:[ \t]*\n[ \t]*\n\s*|\s*\Z)", re.DOTALL)


def take_reasoning(message: dict[str, Any]) -> str | None:
    """Remove the reasoning keys of a message and return the reasoning; None if it has none. Raises RowError."""
    found = [(key, reasoning_text(key, message.pop(key))) for key in KEYS if key in message]
    filled = [text for _, text in found if text.strip()]
    if filled:
        return filled[0]
    return found[0][1] if found else None


def reasoning_text(key: str, value: Any) -> str:
    """The text of reasoning that is a text, a list of parts or an object. Raises RowError if it cannot be read."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(reasoning_text(key, part) for part in value)
    if isinstance(value, dict):
        for name in TEXTS:
            if value.get(name):
                return reasoning_text(key, value[name])
        if value and (
            value.get("data") or not {"type", "id", "format", "index", "signature", "status"}.issuperset(value)
        ):
            raise RowError("reasoning", f"{key} contains reasoning without a text (keys: {', '.join(map(str, value))})")
        return ""
    if isinstance(value, bool | int | float):  # a switch or a token count, not the reasoning itself
        return ""
    raise RowError("reasoning", f"{key} must be text, a list of parts or an object, not {type(value).__name__}")


def split_content(content: str, has_calls: bool) -> tuple[str | None, str]:
    """(reasoning inside a content, or None; the rest). Raises RowError if a `</think>` is ambiguous."""
    if "</think>" not in content:
        return None, content
    inline = OPENED.match(content)
    if inline is None and "<think>" not in content and (found := UNOPENED.match(content)):
        before = found[1].rstrip()
        rest = content[found.end() :]
        if before.count("```") % 2 or before.endswith((":", "`")) or "</think>" in rest:
            raise RowError(
                "reasoning", "`</think>` without `<think>` is ambiguous: end of reasoning or part of the answer"
            )
        if rest or has_calls:  # reasoning is followed by an answer or calls; an answer may end with the tag
            inline = found
    if inline is None:
        return None, content
    return inline[1].strip("\n") or None, content[inline.end() :]
