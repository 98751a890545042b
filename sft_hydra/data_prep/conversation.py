"""Conversion of a parsed row to a checked Conversation: `to_conversation`, and `ConversationReader` for many rows of a source.

Invariant: nothing of a row is dropped silently: an invalid row raises RowError with a reason, and unread keys are listed.
"""

from typing import Any

from sft_hydra.chat.message import check_message
from sft_hydra.chat.roles import ROLES, role_of
from sft_hydra.data_prep.adapters import MESSAGES, adapt, unread_beside_messages
from sft_hydra.data_prep.content_parts import expand, join_calls
from sft_hydra.data_prep.harmony_channels import join_channels
from sft_hydra.data_prep.raw_text import FORMAT, text_conversation
from sft_hydra.data_prep.tool_definitions import read_tools
from sft_hydra.data_prep.unread import EMPTY, unread_of_messages, unread_of_row
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import SourceConfig

KEY_SETS = 1000  # of a source, that are remembered
NORMALIZED = ("role", "content", "reasoning_content")  # keys of an assistant message, in the order of check_message
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
    if _are_plain(found.messages):  # most rows: a cheap test
        return Conversation(list(found.messages), found.tools, origin, name, meta, found.kwargs, unread)
    messages = join_channels(join_calls(expand(found.messages, unread)))
    _check_answer(row, found.read, messages)
    tools = found.tools
    if any(type(message) is dict and "tools" in message for message in messages):
        messages, tools = _with_tools_of_system(messages, tools)
    unread |= unread_of_messages(messages)
    checked = [check_message(message) for message in messages]
    return Conversation(checked, tools, origin, name, meta, found.kwargs, unread)


class ConversationReader:
    """`to_conversation` for the rows of one source. What follows from the keys of a row is determined once for each set of keys;
    most rows have only messages that need no conversion."""

    def __init__(self, source: SourceConfig, name: str) -> None:
        self.source = source
        self.name = name
        self.messages_key = source.messages_key or MESSAGES
        self.unread_keys: dict[tuple[str, ...], tuple[str, ...] | None] = {}  # keys of a row -> its unread keys

    def conversation(self, row: Any, origin: str) -> Conversation:
        """As `to_conversation`."""
        if type(row) is dict:
            keys = tuple(row)
            if keys not in self.unread_keys:
                self._learn(keys)
            unread = self.unread_keys.get(keys)
            if unread is not None:
                messages = row[self.messages_key]
                if type(messages) is list and messages and _are_plain(messages):
                    filled = {key for key in unread if row[key] not in EMPTY}
                    return Conversation(messages.copy(), None, origin, self.name, row, {}, filled)
        return to_conversation(row, self.source, self.name, origin)

    def _learn(self, keys: tuple[str, ...]) -> None:
        if len(self.unread_keys) < KEY_SETS:
            self.unread_keys[keys] = unread_beside_messages(keys, self.source)


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


def _are_plain(messages: list[Any]) -> bool:
    """True for messages that need no conversion, the last of them an answer: each has only a known role and a text, and an
    answer perhaps its reasoning."""
    role = None
    for message in messages:
        if type(message) is not dict:
            return False
        role, content = message.get("role"), message.get("content")
        if type(content) is not str or type(role) is not str or role not in ROLES:
            return False
        if len(message) != 2:
            reasoning = message.get("reasoning_content")
            if role != "assistant" or tuple(message) != NORMALIZED or type(reasoning) is not str:
                return False
            if not reasoning or reasoning.isspace():
                return False
        elif role == "assistant" and "</think>" in content:
            return False
    return role == "assistant"


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
