"""Conversion of a parsed row to a checked Conversation: `to_conversation`.

Invariant: nothing of a row is dropped silently: an invalid row raises RowError with a reason, and unread keys are listed.
"""

from typing import Any

from sft_hydra.chat.message import check_message
from sft_hydra.chat.roles import ROLES, role_of
from sft_hydra.data_prep.adapters import adapt
from sft_hydra.data_prep.content_parts import expand, join_calls
from sft_hydra.data_prep.raw_text import FORMAT, text_conversation
from sft_hydra.data_prep.tool_definitions import read_tools
from sft_hydra.data_prep.unread import unread_of_messages, unread_of_row
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import SourceConfig

ANSWERS = ("response", "completion", "choices", "chosen", "preferred_output", "output")  # columns that hold one


def to_conversation(row: Any, source: SourceConfig, name: str, origin: str) -> Conversation:
    """The Conversation of a row. Raises RowError with reason `no_messages`, `format`, `role`, `content`, `tools`, `history`,
    `text`, `tool_calls`, `tool_arguments`, `reasoning`, `system`, `training_flag`, `weight`, `chat_template_kwargs`,
    `nothing_to_learn` or `unicode`."""
    if source.format == FORMAT:
        return text_conversation(row, source, name, origin)
    found = adapt(row, source)
    meta = row if isinstance(row, dict) else {}
    if not isinstance(found.messages, list) or not found.messages:
        keys = f"; its keys: {', '.join(list(map(str, row))[:9])}" if isinstance(row, dict) else ""
        hint = (
            "; for raw text set the source's format=text"
            if isinstance(row, dict) and isinstance(row.get("text"), str)
            else ""
        )
        raise RowError("no_messages", f"the row has no list of messages{keys}{hint}")
    unread = unread_of_row(meta, found.read)
    if all(map(_is_plain, found.messages)) and found.messages[-1]["role"] == "assistant":  # most rows: a cheap test
        return Conversation(list(found.messages), found.tools, origin, name, meta, found.kwargs, unread)
    messages = join_calls(expand(found.messages, unread))
    _check_answer(row, found.read, messages)
    tools = found.tools
    if any(type(message) is dict and "tools" in message for message in messages):
        messages, tools = _with_tools_of_system(messages, tools)
    unread |= unread_of_messages(messages)
    checked = [check_message(message) for message in messages]
    return Conversation(checked, tools, origin, name, meta, found.kwargs, unread)


def _check_answer(row: Any, read: set[str], messages: list[Any]) -> None:
    """RowError if the answer to the last message is in another column."""
    last = messages[-1]
    if not isinstance(row, dict) or not isinstance(last, dict):
        return
    beside = [key for key in ANSWERS if row.get(key) not in (None, "", []) and key not in read]
    if beside and role_of(str(last.get("role", last.get("from")))) in ("user", "tool"):
        raise RowError(
            "content",
            f"the answer to the last message is in the column {beside[0]}, which is not read when the row has messages; append "
            "it to the messages",
        )


def _is_plain(message: Any) -> bool:
    """True for a message with only a known role and a text, which needs no conversion."""
    if type(message) is not dict or len(message) != 2:
        return False
    role, content = message.get("role"), message.get("content")
    return (
        type(content) is str
        and type(role) is str
        and role in ROLES
        and (role != "assistant" or "</think>" not in content)
    )


def _with_tools_of_system(messages: list[Any], tools: Any) -> tuple[list[Any], Any]:
    """Move tools of the first message to the row, if the row has none."""
    first = messages[0]
    if (
        tools
        or not isinstance(first, dict)
        or not first.get("tools")
        or first.get("role") not in ("system", "developer")
    ):
        return messages, tools
    return [{key: value for key, value in first.items() if key != "tools"}, *messages[1:]], read_tools(first["tools"])
