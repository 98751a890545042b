"""Rows of well-known data sets as chats: `mmlu`, `gsm8k`, `squad`, `oasst`. Each takes a row of the set's hub schema.

All raise RowError if a row does not match its schema.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sft_hydra.errors import RowError
from sft_hydra.records import Message

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations


def multiple_choice(question: str, choices: list[str]) -> str:
    """The text of a question with lettered choices; evaluation uses the same text."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, "", *lines, "", "Answer with the letter of the right choice only."])


def mmlu(row: dict[str, Any]) -> list[Message]:
    """`{question, choices, answer}`, where `answer` is the index of the correct choice; the split auxiliary_train has these
    under `train`. Source: Hendrycks et al. 2021."""
    row = row["train"] if isinstance(row.get("train"), dict) else row
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise RowError("format", "mmlu: needs `question`, `choices` and, in `answer`, the index of the correct choice")
    return _chat(multiple_choice(str(question), [str(choice) for choice in choices]), LETTERS[answer])


def gsm8k(row: dict[str, Any]) -> list[Message]:
    """`{question, answer}`; calculator annotations are removed from the answer. Source: Cobbe et al. 2021."""
    return _chat(_text(row, "question"), CALCULATION.sub("", _text(row, "answer")))


def squad(row: dict[str, Any]) -> list[Message]:
    """`{context, question, answers: {text: [...]}}`: the context becomes the system message, the first
    answer is used. Source: Rajpurkar et al. 2016."""
    answers = row.get("answers")
    texts = answers.get("text") if isinstance(answers, dict) else None
    if not texts:
        raise RowError("format", "squad: `answers.text` is empty, so there is nothing to supervise")
    return [{"role": "system", "content": _text(row, "context")}, *_chat(_text(row, "question"), str(texts[0]))]


def oasst(row: dict[str, Any]) -> list[Message]:
    """A tree `{prompt: {text, role, replies}}`, or the messages of one as `{messages: [{message_id, parent_id, ...}]}`.
    Each turn is the best-ranked reply; the conversation ends with the last assistant message. Source: Köpf et al. 2023."""
    if isinstance(row.get("prompt"), dict):
        return _path(row["prompt"], lambda node: node.get("replies") or [])
    nodes = row.get("messages")
    if not isinstance(nodes, list) or not nodes:
        raise RowError("format", "oasst: needs a tree under `prompt`, or the messages of a tree under `messages`")
    children: dict[Any, list[dict[str, Any]]] = {}
    for node in nodes:
        children.setdefault(node.get("parent_id"), []).append(node)
    return _path(nodes[0], lambda node: children.get(node["message_id"], []))


def trees(rows: Iterable[tuple[int, Any]], first: int, stop: int | None) -> Iterator[tuple[int, Any]]:
    """(row number, row) with the flat oasst rows of each tree joined into one row, for the trees that start in rows
    first..stop (stop excluded; None: to the end)."""
    tree: list[Any] = []
    number = first
    for index, row in rows:
        if not isinstance(row, dict) or "message_id" not in row:
            yield index, row
        elif row.get("parent_id") is None:
            if tree:
                yield number, {"messages": tree}
            tree, number = [], index
            if stop is not None and index >= stop:
                return
            tree.append(row)
        elif tree:
            tree.append(row)
    if tree:
        yield number, {"messages": tree}


def _path(node: dict[str, Any], replies: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> list[Message]:
    messages: list[Message] = []
    answered = 0
    while True:
        role = "assistant" if node.get("role") == "assistant" else "user"
        messages.append({"role": role, "content": node.get("text")})
        answered = len(messages) if role == "assistant" else answered
        options = [reply for reply in replies(node) if not reply.get("deleted")]
        if not options:
            return messages[:answered]
        node = min(options, key=lambda reply: reply["rank"] if reply.get("rank") is not None else len(options))


def _chat(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(row: dict[str, Any], key: str) -> str:
    if not isinstance(row.get(key), str):
        raise RowError("format", f"`{key}` must be text")
    return str(row[key])
