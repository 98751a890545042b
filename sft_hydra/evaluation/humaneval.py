"""The test program for a model's answer to a HumanEval item (Chen et al. 2021)."""

import re
from typing import Any

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_of(row: dict[str, Any], answer: str) -> str:
    """The prompt's code before the function, the answer's code (its first fenced block, else all of it), and the item's
    tests. An answer that does not define the function is taken as a continuation of the prompt."""
    fenced = FENCE.search(answer)
    code = fenced[1] if fenced else answer
    head = re.compile(rf"^def {re.escape(row['entry_point'])}\b", re.MULTILINE)
    start = head.split(row["prompt"])[0] if head.search(code) else row["prompt"]
    return f"{start}{code}\n\n{row['test']}\ncheck({row['entry_point']})\n"
