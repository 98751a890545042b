"""Assistant messages with a `channel`, as gpt-oss writes a turn: `join_channels`.

A turn is several messages there: `analysis` is its reasoning, `commentary` goes with calls, `final` is its answer. Invariant:
reasoning is not trained as an answer.
"""

from typing import Any

from sft_hydra.chat.roles import role_of
from sft_hydra.errors import RowError

CHANNELS = ("analysis", "commentary", "final")


def join_channels(messages: list[Any]) -> list[Any]:
    """The messages with each `analysis` message as the `reasoning_content` of the assistant message that it precedes. RowError
    for one that precedes none, and for other channels."""
    if not any(isinstance(message, dict) and message.get("channel") for message in messages):
        return messages
    out: list[Any] = []
    thoughts: list[str] = []
    for message in messages:
        if not _is_assistant(message):
            _check_used(thoughts)
            out.append(message)
            continue
        channel = message.get("channel")
        if channel is not None and channel not in CHANNELS:
            raise RowError("content", f"channel={channel!r}: expected {', '.join(CHANNELS)}")
        message = {key: value for key, value in message.items() if key != "channel"}
        if channel == "analysis" and not message.get("tool_calls"):
            thoughts.append(_text(message))
            continue
        if thoughts and message.get("reasoning_content"):
            raise RowError(
                "reasoning", "an assistant message has reasoning_content beside an analysis message before it"
            )
        if thoughts:
            message["reasoning_content"] = "\n".join(thoughts)
            thoughts = []
        out.append(message)
    _check_used(thoughts)
    return out


def _is_assistant(message: Any) -> bool:
    return isinstance(message, dict) and role_of(str(message.get("role", message.get("from")))) == "assistant"


def _text(message: dict[str, Any]) -> str:
    text = message.get("content", message.get("value"))
    if not isinstance(text, str):
        raise RowError("content", f"the content of an analysis message must be text, not {type(text).__name__}")
    return text


def _check_used(thoughts: list[str]) -> None:
    if thoughts:
        raise RowError("reasoning", "an analysis message is not followed by an assistant message that it belongs to")
