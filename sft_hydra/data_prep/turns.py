"""Merging and masking of turns: `arrange`, for `data.merge_same_role` and `data.train_on_last_turn`."""

from dataclasses import replace
from typing import Any

from sft_hydra.records import Conversation, Message
from sft_hydra.schema.data import DataConfig

MERGED = ("system", "developer", "user", "assistant")  # not tool: each result belongs to its own call
BETWEEN = "\n\n"


def arrange(conversation: Conversation, data: DataConfig) -> Conversation:
    """A conversation with these two options of `data` applied; the input is not modified."""
    messages = conversation.messages
    if data.merge_same_role:
        messages = _merge(messages)
    if data.train_on_last_turn:
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        messages = [
            {**message, "weight": 0} if message["role"] == "assistant" and i < last else message
            for i, message in enumerate(messages)
        ]
    return conversation if messages is conversation.messages else replace(conversation, messages=messages)


def _merge(messages: list[Message]) -> list[Message]:
    """Consecutive messages of one role as one message, if both or neither are supervised."""
    out: list[Message] = []
    for message in messages:
        before = out[-1] if out else None
        if before is None or not _belong_together(before, message):
            out.append(message)
            continue
        joined: dict[str, Any] = {**before, **message}
        for key in ("reasoning_content", "content"):
            texts = [text for text in (before.get(key), message.get(key)) if text]
            if texts:
                joined[key] = BETWEEN.join(texts)
        if calls := [*before.get("tool_calls", ()), *message.get("tool_calls", ())]:
            joined["tool_calls"] = calls
        out[-1] = joined
    return out


def _belong_together(before: Message, message: Message) -> bool:
    same = before["role"] == message["role"] and before.get("name") == message.get("name")
    return same and before["role"] in MERGED and before.get("weight", 1) == message.get("weight", 1)
