"""Conversion of the tool definitions of a row to OpenAI's format: `read_tools`. Accepts Anthropic's, Gemini's, Bedrock's and
MCP's keys for the schema."""

from collections.abc import Iterator
from typing import Any

from sft_hydra.chat.calls import parse_json
from sft_hydra.errors import RowError

KEYS = (  # columns that may hold tools, beside the one that the source names
    *("functions", "tool_defs", "tool_definitions", "tools_definition", "function_definitions", "available_tools"),
    *("oai_tools", "tool_schemas", "tools_json"),
)
SCHEMAS = ("parameters", "input_schema", "inputSchema", "parametersJsonSchema")
OTHER_SCHEMAS = frozenset(SCHEMAS[1:])
Tool = dict[str, Any]


def read_tools(tools: Any) -> list[Tool] | None:
    """Tools as `{"type": "function", "function": {...}}`; None if there are none. `tools`: a list, an object of
    declarations, or the JSON of one. RowError with reason `tools` if they are not."""
    if isinstance(tools, str):
        tools = parse_json(tools) if tools.strip() else None
    if not tools:
        return None
    if isinstance(tools, dict) and ("functionDeclarations" in tools or "function_declarations" in tools):
        tools = [tools]
    if not isinstance(tools, list):
        raise RowError("tools", "tools must be a list of objects")
    return list(_each(tools)) or None


def _each(tools: list[Any]) -> Iterator[Tool]:
    for tool in tools:
        if isinstance(tool, str) and tool.strip().startswith("{"):
            tool = parse_json(tool)
        if not isinstance(tool, dict):
            raise RowError("tools", "tools must be a list of objects")
        function = tool.get("function")
        if type(function) is dict and type(function.get("name")) is str and not _is_foreign(function):
            yield tool  # already in this format
            continue
        declared = tool.get("functionDeclarations", tool.get("function_declarations"))
        if isinstance(declared, list):
            yield from _each(declared)
            continue
        if isinstance(tool.get("toolSpec"), dict):
            tool = tool["toolSpec"]
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name", ""), str):
            raise RowError("tools", "a tool must be an object with a string as `name`")
        if "function" in tool:
            yield {**tool, "function": _with_parameters(function)} if _is_foreign(function) else tool
        elif "name" not in tool:  # a built-in tool of the server
            yield tool
        else:
            flat = {key: value for key, value in tool.items() if key != "type"}
            yield {"type": "function", "function": _with_parameters(flat) if _is_foreign(flat) else flat}


def _is_foreign(function: Tool) -> bool:
    return type(function.get("parameters")) is str or not OTHER_SCHEMAS.isdisjoint(function)


def _with_parameters(function: Tool) -> Tool:
    """The function with its schema as an object under `parameters`, at the same position."""
    schemas = [key for key in SCHEMAS if function.get(key) is not None]
    if len(schemas) > 1:
        raise RowError("tools", f"a tool has both {' and '.join(schemas)}; keep one of them")
    out: Tool = {}
    for key, value in function.items():
        if key in schemas:
            if isinstance(value, dict) and set(value) == {"json"}:  # Bedrock
                value = value["json"]
            out["parameters"] = parse_json(value) if isinstance(value, str) and value.strip() else value
        elif key not in SCHEMAS:
            out[key] = value
    return out
