"""Nulls of columnar files: `prune_row` removes those that the file format added, as far as they can be recognized.

Arrow adds the union of all rows' keys to every row, with nulls. A null that was in the row itself looks the same, except
where a tool requires the argument: removing it would change the call.
"""

from collections.abc import Callable
from typing import Any

from sft_hydra.data_prep.tool_definitions import read_tools
from sft_hydra.errors import RowError


def prune_nulls(value: Any) -> Any:
    """A copy of a JSON `value` without keys whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: prune_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [prune_nulls(item) for item in value]
    return value


def prune_row(row: Any, prune: Callable[[Any], Any] = prune_nulls) -> Any:
    """A row of a columnar file without the nulls that the file format added. `prune`: removes them from a value. Null arguments
    that their tool requires stay."""
    pruned = prune(row)
    if isinstance(row, dict) and isinstance(row.get("messages"), list) and row.get("tools"):
        for before, after in zip(row["messages"], pruned.get("messages", ()), strict=False):
            _restore(before, after, row["tools"])
    return pruned


def _restore(before: Any, after: Any, tools: Any) -> None:
    """Put back the nulls of arguments that their tool requires."""
    calls = before.get("tool_calls") if isinstance(before, dict) else None
    if not isinstance(calls, list):
        return
    for old, new in zip(calls, after.get("tool_calls", ()), strict=False):
        function: Any = old.get("function") if isinstance(old, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(arguments, dict) or None not in arguments.values():
            continue
        names = _required(function.get("name"), tools)
        nulls = {key for key, value in arguments.items() if value is None and key in names}
        if nulls:
            kept = new["function"].get("arguments", {})
            new["function"]["arguments"] = {key: kept.get(key) for key in arguments if key in kept or key in nulls}


def _required(name: Any, tools: Any) -> set[str]:
    try:
        found = read_tools(prune_nulls(tools)) or []
    except RowError:  # the row is rejected for it when it is read
        return set()
    for tool in found:
        function = tool.get("function", tool)
        schema = function.get("parameters")
        if function.get("name") == name and isinstance(schema, dict):
            required = schema.get("required")
            return {str(key) for key in required} if isinstance(required, list) else set()
    return set()
