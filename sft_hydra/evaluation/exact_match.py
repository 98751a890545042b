"""Exact match on held-out conversations, of which the model generates every assistant turn.

Invariant: a conversation counts only if all its turns match in content, reasoning, and names and arguments of tool calls;
a tool call is followed by the result of the call that the model generated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sft_hydra.errors import DataError
from sft_hydra.evaluation.chat import Prompt, tool_result
from sft_hydra.evaluation.parse import parse_answer
from sft_hydra.evaluation.prompts import DEMO, Execute, read_conversations
from sft_hydra.records import Conversation, Message


@dataclass(slots=True)
class Transcript:
    """One evaluated conversation, with the generated turns up to the first that does not match."""

    task: str
    messages: list[Message]
    expected: Message | None  # the expected last turn; None: all turns match


@dataclass(slots=True)
class ExactMatchResult:
    """Scores and transcripts of an exact-match evaluation."""

    tasks: dict[str, float]  # task -> share of conversations that match, 0 to 1
    average: float  # over tasks
    transcripts: list[Transcript]


def load_items(path: str, max_items: int | None) -> list[Conversation]:
    """Conversations of a JSONL file (`task` in each row is its group), or the bundled ones (`demo`); `max_items` per task.

    DataError if a row is invalid or there are no conversations.
    """
    taken: dict[str, int] = {}
    items = []
    for item in read_conversations("demo:heldout" if path == DEMO else path, "eval.exact_match.path"):
        task = _task(item)
        taken[task] = taken.get(task, 0) + 1
        if max_items is None or taken[task] <= max_items:
            items.append(item)
    if not items:
        raise DataError(f"eval.exact_match.path={path}: contains no conversations")
    return items


def run_exact_match(
    items: list[Conversation], answer: Callable[[list[Prompt]], list[str]], execute: Execute | None
) -> ExactMatchResult:
    """Evaluate all conversations, batched turn by turn. Without `execute`, tool calls get the recorded results."""
    games = [_Game(item) for item in items]
    while waiting := [game for game in games if game.expected is not None and not game.failed]:
        texts = answer([game.prompt() for game in waiting])
        for game, text in zip(waiting, texts, strict=True):
            game.play(parse_answer(text), execute)
    right: dict[str, list[bool]] = {}
    for game in games:
        right.setdefault(_task(game.item), []).append(not game.failed)
    tasks = {task: sum(played) / len(played) for task, played in right.items()}
    transcripts = [Transcript(_task(game.item), game.messages, game.expected) for game in games]
    return ExactMatchResult(tasks, sum(tasks.values()) / len(tasks), transcripts)


class _Game:
    """State of one conversation: `messages` so far, and the expected next assistant turn."""

    def __init__(self, item: Conversation) -> None:
        self.item = item
        self.messages: list[Message] = []
        self.expected: Message | None = None
        self.failed = False
        self._recorded = iter(item.messages)
        self._advance([])

    def prompt(self) -> Prompt:
        """The prompt for the next assistant turn."""
        assert self.expected is not None
        return Prompt(list(self.messages), self.item.tools, "reasoning_content" in self.expected)

    def play(self, message: Message, execute: Execute | None) -> None:
        """Add the generated turn; if it matches, advance to the next assistant turn."""
        assert self.expected is not None
        self.messages.append(message)
        self.failed = _meaning(message) != _meaning(self.expected)
        if self.failed:
            return
        self._advance([tool_result(call, execute) for call in message.get("tool_calls", [])] if execute else [])

    def _advance(self, results: list[Message]) -> None:
        """Add recorded messages up to the next assistant turn; `results`, if any, replace the recorded tool messages."""
        self.messages += results
        self.expected = None
        for recorded in self._recorded:
            if recorded["role"] == "assistant":
                self.expected = recorded
                return
            if not (results and recorded["role"] == "tool"):
                self.messages.append(recorded)


def _meaning(message: Message) -> tuple[str, str, list[tuple[str, Any]]]:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return message.get("content", "").strip(), message.get("reasoning_content", "").strip(), calls


def _task(item: Conversation) -> str:
    return str(item.meta.get("task", "all"))
