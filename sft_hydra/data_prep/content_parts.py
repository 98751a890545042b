"""Messages whose content is a list of parts, in the formats of Anthropic, Gemini, Bedrock, Mistral, the AI SDK and LLaMA-Factory
(whose parts have their text under `value`): `expand`.

A message with tool results beside text becomes several messages. Invariant: parts keep their order, or the row is rejected; a
part of an unsupported kind (an image) raises a RowError that names it.
"""

from collections.abc import Iterator
from typing import Any

from sft_hydra.chat.calls import parse_json
from sft_hydra.chat.message import as_json, calls_in
from sft_hydra.chat.reasoning import reasoning_text
from sft_hydra.chat.roles import CALLS, role_of
from sft_hydra.errors import RowError
from sft_hydra.records import Message

TEXT = ("text", "input_text", "output_text")
REASONING = ("thinking", "reasoning", "reasoning_text", "reasoningContent", "redacted_thinking")
CALL = ("tool_use", "tool_call", "tool-call", "function_call", "functionCall", "function", "toolUse", "server_tool_use")
RESULT = ("tool_result", "tool-result", "function_call_output", "functionResponse", "toolResult")
ORDER = {"reasoning": 0, "text": 1, "call": 2}
READ = frozenset(
    {
        *(
            "type",
            "text",
            "value",
            "thinking",
            "reasoning",
            "name",
            "id",
            "input",
            "arguments",
            "args",
            "content",
            "tool_use_id",
        ),
        *("functionCall", "functionResponse", "toolUse", "toolResult", "reasoningContent", "thought", "function"),
        *("tool_call_id", "toolCallId", "toolName", "call_id", "output", "result", "summary"),
    }
)


def expand(messages: list[Any], unread: set[str]) -> list[Any]:
    """The messages with contents as text, reasoning, calls and results under their own keys. Adds to `unread` the keys of
    parts that are not read. RowError for unsupported parts and for parts in an order that templates cannot print."""
    for message in messages:
        if type(message) is dict and type(message.get("content")) is not str and _has_list(message):
            return [part for message in messages for part in _expand(message, unread)]
    return messages


def join_calls(messages: list[Any]) -> list[Any]:
    """Consecutive messages of a tool-call role as one message, because the model makes these calls in one turn (the format of
    ms-swift)."""
    out: list[Any] = []
    for message in messages:
        if _is_call(message) and out and _is_call(out[-1]):
            joined = [*calls_in(_content(out[-1])), *calls_in(_content(message))]
            out[-1] = {**{key: value for key, value in out[-1].items() if key != "value"}, "content": joined}
        else:
            out.append(message)
    return out


def _is_call(message: Any) -> bool:
    return isinstance(message, dict) and role_of(str(message.get("role", message.get("from")))) in CALLS


def _content(message: Message) -> Any:
    return message.get("content", message.get("value"))


def _has_list(message: dict[str, Any]) -> bool:
    return any(type(message.get(key)) is list for key in ("content", "value", "parts"))


def _expand(message: Any, unread: set[str]) -> Iterator[Any]:
    if not isinstance(message, dict):
        yield message
        return
    key = next((name for name in ("content", "value", "parts") if isinstance(message.get(name), list)), None)
    role = str(message.get("role", message.get("from", "")))
    if (
        key is None
        or role_of(role) in CALLS
        or (role_of(role) == "tool" and key != "parts" and not _has_results(message[key]))
    ):
        yield message
        return
    rest = {name: value for name, value in message.items() if name != key}
    parts = [_read_part(part, unread) for part in message[key]]
    if role_of(role) == "assistant":
        yield _assistant(rest, parts)
    else:
        yield from _others(rest, parts, role)


def _has_results(parts: list[Any]) -> bool:
    return any(
        isinstance(part, dict) and (part.get("type") in RESULT or not {*RESULT}.isdisjoint(part)) for part in parts
    )


def _read_part(part: Any, unread: set[str]) -> tuple[str, Any]:
    """Kind (`text`, `reasoning`, `call`, `result`) and value of a part."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        raise RowError("content", f"a content part must be an object, not {type(part).__name__}")
    part = {key: value for key, value in part.items() if value is not None}
    unread |= {f"content.{key}" for key in part if key not in READ}
    if not isinstance(part.get("type"), str | None):
        raise RowError("content", f"the type of a content part must be text, not {type(part['type']).__name__}")
    kind = part.get("type") or next((key for key in (*CALL, *RESULT, *REASONING) if key in part), "text")
    inner = part.get(kind) if isinstance(part.get(kind), dict) else part
    if kind in REASONING or (kind == "text" and part.get("thought") is True):
        return "reasoning", reasoning_text(str(kind), inner)
    if kind in CALL and isinstance(part.get("value"), str):
        return "call", parse_json(part["value"])
    if kind in CALL:
        return "call", {name: value for name, value in inner.items() if name != "type" or kind == "function"}
    if kind in RESULT:
        return "result", inner
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return "text", part["refusal"]
    text = part.get("text", part.get("value") if "type" in part else None)
    if (kind in TEXT or "type" not in part) and isinstance(text, str):
        return "text", text
    raise RowError(
        "content", f"unsupported content part (text only): {kind if 'type' in part else ', '.join(map(str, part))}"
    )


def _assistant(rest: Message, parts: list[tuple[str, Any]]) -> Message:
    kinds = [kind for kind, _ in parts]
    if "result" in kinds or [ORDER[kind] for kind in kinds] != sorted(ORDER[kind] for kind in kinds):
        raise RowError(
            "content", f"assistant content parts must be ordered reasoning, text, calls; found {', '.join(kinds)}"
        )
    joined = {kind: [value for other, value in parts if other == kind] for kind in ORDER}
    message = {**rest, "content": "".join(joined["text"])}
    for kind, key in (("reasoning", "reasoning_content"), ("call", "tool_calls")):
        if joined[kind] and message.get(key):
            raise RowError("content", f"{key} is both in the content parts and a key of the message; keep one of them")
    if joined["reasoning"]:
        message["reasoning_content"] = "".join(joined["reasoning"])
    if joined["call"]:
        message["tool_calls"] = joined["call"]
    return message


def _others(rest: Message, parts: list[tuple[str, Any]], role: str) -> Iterator[Message]:
    """A message for each result, and one for each run of text between them."""
    if any(kind in ("call", "reasoning") for kind, _ in parts):
        raise RowError("content", f"tool call or reasoning in a {role} message; only assistant messages can have these")
    text: list[str] = []
    for kind, value in parts:
        if kind == "text":
            text.append(value)
            continue
        if text:
            yield {**rest, "content": "".join(text)}
            text = []
        yield _result(value)
    if text or not parts:
        yield {**rest, "content": "".join(text)}


def _result(part: dict[str, Any]) -> Message:
    content = next((part[key] for key in ("content", "output", "result", "response") if key in part), "")
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        if any(item.get("type") not in (None, *TEXT) for item in content):
            raise RowError("content", "tool result with a part other than text; only text is supported")
        texts = [item.get("text") for item in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else as_json(content)
    elif not isinstance(content, str):
        content = as_json(content)
    ids = [
        part[key]
        for key in ("tool_use_id", "toolUseId", "tool_call_id", "toolCallId", "call_id", "id")
        if part.get(key)
    ]
    names = [part[key] for key in ("name", "toolName") if part.get(key)]
    extra = {key: part[key] for key in ("is_error", "isError", "status") if part.get(key)}
    message = {"role": "tool", "content": content, **extra}
    return message | ({"tool_call_id": ids[0]} if ids else {}) | ({"name": names[0]} if names else {})
