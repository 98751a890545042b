"""From a parsed row to a checked Conversation, or to a reason why not: `to_conversation`.

Invariant: what went in is not lost: a row that does not fit is RowError with a reason.
"""

from typing import Any

from sft_hydra.chat.message import check_message, parse_json
from sft_hydra.data_prep.adapters import adapt
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import SourceConfig


def to_conversation(row: Any, source: SourceConfig, name: str, origin: str) -> Conversation:
    """The Conversation of a row. Raises RowError with reason `no_messages`, `format`, `role`, `content`, `tools`,
    `tool_calls`, `tool_arguments`, `weight` or `unicode`."""
    messages, tools = adapt(row, source)
    if not isinstance(messages, list) or not messages:
        keys = f"; its keys: {', '.join(list(map(str, row))[:9])}" if isinstance(row, dict) else ""
        raise RowError("no_messages", f"no list of messages{keys}")
    checked = [check_message(message) for message in messages]
    meta = row if isinstance(row, dict) else {}
    return Conversation(checked, _tools(tools), origin, name, meta)


def prune_nulls(value: Any) -> Any:
    """`value` without the keys that are null: columnar files fill the union of all rows' keys with nulls."""
    if isinstance(value, dict):
        return {key: prune_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [prune_nulls(item) for item in value]
    return value


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):
        tools = parse_json(tools) if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("tools", "tools must be a list of objects")
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name", ""), str):
            raise RowError("tools", "a tool must be an object whose name is text")
    return [tool if "function" in tool or "name" not in tool else _wrap(tool) for tool in tools]


def _wrap(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
