"""Keys of a row that are not read: `unread_of_messages`, `unread_of_row`. They are counted and reported by data
preparation."""

from collections.abc import Iterable
from typing import Any

from sft_hydra.chat.calls import unread_of_call
from sft_hydra.chat.flags import FLAGS, is_supervised, refuse_unknown_flag
from sft_hydra.chat.message import CALL_KEYS, PLAIN
from sft_hydra.chat.reasoning import KEYS as REASONING
from sft_hydra.chat.roles import role_of
from sft_hydra.errors import RowError

READ = PLAIN - {"name"} | {"from", "value", "refusal", "function_calls", *CALL_KEYS, *REASONING}
EMPTY: tuple[Any, ...] = (None, "", [], {})
SPEECH = {  # unread keys whose loss would change what the model says or sees: (reason, detail)
    "messages.function_calls": ("tool_calls", "tool calls under a key that the chat template does not read"),
    "messages.functions": ("tools", "tools of a message, which the chat template does not read"),
    "messages.tools": ("tools", "tools of a message, which the chat template does not read"),
    "messages.images": ("content", "images are not supported, only text"),
    "messages.audio": ("content", "audio is not supported, only text"),
    "messages.refusal": ("content", "a refusal beside a content; keep one of them"),
}


def unread_of_messages(messages: list[Any]) -> set[str]:
    """Keys of messages and calls that are not read, as `messages.<key>` and `tool_calls.<key>`. RowError for a key of an assistant
    message that looks like a training flag."""
    found: set[str] = set()
    for message in messages:
        if not isinstance(message, dict) or len(message) == 2:
            continue
        for key, value in message.items():
            if key in READ:
                if key in CALL_KEYS and isinstance(value, list):
                    found |= {f"tool_calls.{name}" for call in value for name in unread_of_call(call)}
                elif key == "function_calls" and isinstance(value, str) and value:
                    found.add("messages.function_calls")
                elif key == "refusal" and value and message.get("content"):
                    found.add("messages.refusal")
            elif key in FLAGS:
                if _wants_more(message, key, value):
                    found.add(f"messages.{key} (on a message that is no answer)")
            elif value not in EMPTY:
                found |= _unknown_key(message, str(key), value)
    return found


def unread_of_row(row: dict[str, Any], read: set[str]) -> set[str]:
    """Keys of a row that are not in `read` and whose value is not empty."""
    return {str(key) for key, value in row.items() if key not in read and (value not in EMPTY)}


def check_speech(unread: Iterable[str]) -> None:
    """RowError if one of these unread keys is in SPEECH, with its reason."""
    for key in unread:
        if key in SPEECH:
            raise RowError(SPEECH[key][0], f"{key}: {SPEECH[key][1]}")


def _unknown_key(message: dict[str, Any], key: str, value: Any) -> set[str]:
    role = role_of(str(message.get("role", message.get("from"))))
    if role == "assistant":
        refuse_unknown_flag(key, value)
    if role == "tool" and key == "name":  # the call has it too
        return set()
    return {f"messages.{key}"}


def _is_answer(message: dict[str, Any]) -> bool:
    return role_of(str(message.get("role", message.get("from")))) == "assistant"


def _wants_more(message: dict[str, Any], key: str, value: Any) -> bool:
    """True if a flag marks a message as supervised that is not an assistant message."""
    if _is_answer(message) or value is None:
        return False
    try:
        return is_supervised(key, value)
    except RowError:
        return True
