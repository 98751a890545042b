"""The rows that benchmarks/templates.py renders: `SHAPES`, one of each message format, or random ones (`use_random_shapes`).

Texts of a message occur nowhere else in its row.
"""

import random
from itertools import count
from typing import Any

TOOL = {
    "type": "function",
    "function": {
        "name": "get_wind",
        "description": "Wind of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "Name of it"}},
            "required": ["town"],
        },
    },
}


def user(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"Question{number}, please?"}


def answer(number: int, thought: bool = False) -> dict[str, Any]:
    more = {"reasoning_content": f"Thought{number} about it"} if thought else {}
    return {"role": "assistant", "content": f"Answer{number} is this.", **more}


def call(*numbers: int, content: str = "", thought: bool = False) -> dict[str, Any]:
    calls = [
        {"id": f"callabcd{n}", "type": "function", "function": {"name": "get_wind", "arguments": {"town": f"Town{n}"}}}
        for n in numbers
    ]
    more = {"reasoning_content": f"Thought{numbers[0]} of calling"} if thought else {}
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def result(number: int) -> dict[str, Any]:
    return {"role": "tool", "content": f"Result{number} calm", "tool_call_id": f"callabcd{number}", "name": "get_wind"}


SYSTEM = {"role": "system", "content": "Rule0 to follow."}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "plain": [user(1), answer(1)],
    "system": [SYSTEM, user(1), answer(1)],
    "turns": [SYSTEM, user(1), answer(1), user(2), answer(2)],
    "developer": [{**SYSTEM, "role": "developer"}, user(1), answer(1)],
    "tools": [SYSTEM, user(1), answer(1)],
    "call": [user(1), call(1), result(1), answer(1)],
    "call, text": [user(1), call(1, content="Beside1 it."), result(1), answer(1)],
    "parallel": [user(1), call(1, 2), result(1), result(2), answer(1)],
    "steps": [SYSTEM, user(1), call(1), result(1), call(2), result(2), answer(1), user(2), answer(2)],
    "reasoning": [user(1), answer(1, True), user(2), answer(2, True)],
    "reasoning, call": [user(1), call(1, thought=True), result(1), answer(2, True)],
    "mixed": [user(1), call(1, thought=True), result(1), answer(2)],
}
WITH_TOOLS = {"tools", "call", "call, text", "parallel", "steps", "reasoning, call", "mixed"}


def use_random_shapes(number: int, seed: int) -> None:
    """Replace SHAPES by so many rows of one to four user turns, with or without a system message, tools, parallel calls, text
    beside calls, and reasoning."""
    chance = random.Random(seed)
    SHAPES.clear()
    WITH_TOOLS.clear()
    for name in map("random {}".format, range(number)):
        SHAPES[name] = _random_row(chance, tools := chance.random() < 0.6)
        if tools:
            WITH_TOOLS.add(name)


def _random_row(chance: random.Random, tools: bool) -> list[dict[str, Any]]:
    numbers = count(100)  # of three digits, so that no text contains another
    thinks = chance.random() < 0.35
    messages = [SYSTEM] if chance.random() < 0.5 else []
    for _ in range(chance.randint(1, 4)):
        messages.append(user(next(numbers)))
        for _ in range(chance.choice([0, 0, 1, 1, 2, 3]) if tools else 0):
            own = [next(numbers) for _ in range(1 if chance.random() < 0.8 else 2)]
            beside = f"Beside{own[0]} it." if chance.random() < 0.35 else ""
            messages.append(call(*own, content=beside, thought=thinks and chance.random() < 0.6))
            messages += [result(each) for each in own]
        messages.append(answer(next(numbers), thinks and chance.random() < 0.6))
    return messages
