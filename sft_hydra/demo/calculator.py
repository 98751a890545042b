"""The demo's tools: definitions for the model, and the functions that execute calls.

Invariant: `execute` returns a text for any call, valid or not; no code is evaluated.
"""

import operator
from collections.abc import Callable
from typing import Any

from sft_hydra.demo.items import NAMES

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def _tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS: dict[str, dict[str, Any]] = {
    "calc": _tool(
        "calc",
        "Calculates with two whole numbers.",
        a={"type": "integer"},
        op={"type": "string", "enum": list(OPERATORS)},
        b={"type": "integer"},
    ),
    "letter_at": _tool(
        "letter_at",
        "Gives one letter of a word; the first has index 1.",
        word={"type": "string"},
        index={"type": "integer"},
    ),
    "guest": _tool(
        "guest",
        "Says who lives in a room of the hotel.",
        floor={"type": "integer"},
        room={"type": "integer"},
    ),
}


def execute(name: str, arguments: Any) -> str:
    """Result of a tool call, or a text that starts with `error:`."""
    if name not in FUNCTIONS:
        return f"error: no tool {name}"
    if not isinstance(arguments, dict):
        return "error: arguments are not an object"
    try:
        return str(FUNCTIONS[name](**arguments))
    except (TypeError, ValueError) as problem:
        return f"error: {problem}"


def calc(a: int, op: str, b: int) -> int:
    if type(a) is not int or type(b) is not int:
        raise ValueError("a and b must be whole numbers")
    if max(abs(a), abs(b)) >= 10**9:
        raise ValueError("a number is too large")
    if op not in OPERATORS:
        raise ValueError(f"op must be one of {' '.join(OPERATORS)}")
    return OPERATORS[op](a, b)


def letter_at(word: str, index: int) -> str:
    if type(word) is not str or type(index) is not int:
        raise ValueError("word must be a text and index a whole number")
    if not 1 <= index <= len(word):
        raise ValueError(f"{word} has no letter {index}")
    return word[index - 1]


def guest(floor: int, room: int) -> str:
    if type(floor) is not int or type(room) is not int:
        raise ValueError("floor and room must be whole numbers")
    return NAMES[(7 * floor + room) % len(NAMES)]


FUNCTIONS: dict[str, Callable[..., int | str]] = {"calc": calc, "letter_at": letter_at, "guest": guest}
