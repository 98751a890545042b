"""The program that tests what a model wrote for an item of HumanEval."""

import re
from typing import Any

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_of(row: dict[str, Any], answer: str) -> str:
    """The answer's code (its first fenced block, else all of it) with what the prompt has before the function, and the
    item's tests. An answer that does not define the function is taken for the rest of the prompt."""
    fenced = FENCE.search(answer)
    code = fenced[1] if fenced else answer
    head = re.compile(rf"^def {re.escape(row['entry_point'])}\b", re.MULTILINE)
    start = head.split(row["prompt"])[0] if head.search(code) else row["prompt"]
    return f"{start}{code}\n\n{row['test']}\ncheck({row['entry_point']})\n"
