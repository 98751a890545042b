"""Normalizes tool calls to OpenAI's form: `read_call`.

Invariant: arguments are found under any of the names below; a call whose arguments are under an unknown name raises RowError
and never becomes a call with empty arguments.
"""

from typing import Any

import orjson

from sft_hydra.chat.lenient_json import has_long_number, parse_leniently
from sft_hydra.errors import RowError

ARGUMENTS = ("arguments", "parameters", "input", "args", "kwargs", "params", "inputs", "arguments_json", "action_input")
NAMES = ("name", "tool_name", "toolName", "function_name", "tool", "action")
IDS = ("id", "tool_call_id", "call_id", "toolCallId", "toolUseId")
USUAL, OUTER = frozenset({"name", "arguments"}), frozenset({"id", "type", "function"})
READ = frozenset({*ARGUMENTS, *NAMES, *IDS, "function", "type"})


def read_call(call: Any) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", "arguments": object}}`, from that form or the flat one. Raises RowError."""
    function: Any = call.get("function", call) if isinstance(call, dict) else None
    if isinstance(function, str):
        function = call
    if _is_usual(call, function):
        arguments = function["arguments"]
        if type(arguments) is not dict:
            arguments = _object(arguments)
        return {**call, "function": {**function, "arguments": arguments}}
    name = _name(function) if isinstance(function, dict) else None
    if name is None:
        raise RowError("tool_calls", "a tool call needs a function with a name")
    arguments = _arguments(function, call)
    if function is not call:
        others = {*ARGUMENTS, *NAMES} - USUAL
        inner = {key: value for key, value in function.items() if key not in others}
        outer = {key: value for key, value in call.items() if key not in ARGUMENTS}
        named = {**inner, "name": name} if "name" in inner else {"name": name, **inner}
        return {**outer, "function": {**named, "arguments": arguments}}
    id_ = next((call[key] for key in IDS if call.get(key) is not None), None)
    return {
        **({} if id_ is None else {"id": id_}),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _is_usual(call: Any, function: Any) -> bool:
    """Whether the call is in OpenAI's form already, as most are."""
    if type(function) is not dict or function is call or not (USUAL.issuperset(function) and OUTER.issuperset(call)):
        return False
    return type(function.get("name")) is str and function["name"] != "" and function.get("arguments") is not None


def unread_of_call(call: Any) -> set[str]:
    """Keys of a call that `read_call` does not read."""
    parts = [call, call.get("function")] if isinstance(call, dict) else []
    return {key for part in parts if isinstance(part, dict) for key in part if key not in READ}


def _name(function: dict[str, Any]) -> str | None:
    name = function.get("name")
    if not isinstance(name, str | None):
        raise RowError("tool_calls", f"the name of a tool call must be text, not {type(name).__name__}")
    found = [function.get(key) for key in NAMES] + [function.get("function")]
    return next((name for name in found if isinstance(name, str) and name), None)


def _arguments(function: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    levels = [function] if function is call else [function, call]
    found = [(key, _object(level[key])) for level in levels for key in ARGUMENTS if level.get(key) is not None]
    filled = [(key, value) for key, value in found if value]
    if any(value != filled[0][1] for _, value in filled):
        raise RowError(
            "tool_arguments", f"{' and '.join(key for key, _ in filled)} of a tool call differ; keep one of them"
        )
    if filled:
        return filled[0][1]
    others = sorted(
        str(key)
        for level in levels
        for key, value in level.items()
        if key not in READ and isinstance(value, dict) and value
    )
    if others:
        raise RowError("tool_arguments", f"a tool call has no arguments, but unknown objects: {', '.join(others)}")
    return {}


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = parse_json(value) if value.strip() else {}
    if not isinstance(value, dict):
        raise RowError("tool_arguments", f"arguments of a tool call must be a JSON object, not {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    """Parse a JSON text inside a row. Raises RowError("tool_arguments") if it is not JSON."""
    try:
        long = has_long_number(text.encode("utf-8", "surrogatepass"))
        return parse_leniently(text) if long else orjson.loads(text)
    except ValueError as problem:
        raise RowError("tool_arguments", f"not JSON: {problem}") from None
