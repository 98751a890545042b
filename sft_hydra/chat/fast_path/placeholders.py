"""A conversation with placeholders for everything that differs between rows of one shape: `PlaceholderConversation`.

Invariant: if the template changes or cuts a placeholder, `formats` returns None.
"""

from typing import Any

from jinja2 import Undefined

from sft_hydra.chat.tool_blocks import Block
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.records import Conversation, Message

TEXTS = ("content", "reasoning_content", "tool_call_id", "name")  # text fields of messages
EDGES = (" ", "\n")  # white space that a text may start or end with, if the template keeps it
CALL = {"type": "function", "function": {"name": "Zq", "arguments": {}}}
TOOL = {"type": "function", "function": {"name": "Zq", "description": "Zq", "parameters": {}}}


class PlaceholderConversation:
    """`conversation`: the original with placeholders `texts` for its texts, which contain characters that escaping changes.

    A placeholder starts with `head` or ends with `tail` where the text has white space there. Each list of tools or calls is
    replaced by `count` dummy ones."""

    def __init__(self, original: Conversation, filler: str, head: str, tail: str, count: int) -> None:
        self.filler = filler
        self.texts: list[str] = []
        self.blocks: list[tuple[Block, int]] = []  # (block, number of its list); their placeholders are last in `texts`
        self.lists: list[Any] = []
        messages: list[Message] = []
        tools = self._list(TOOL, count) if original.tools else None
        for message in original.messages:
            probe = dict(message)
            for name in TEXTS:
                if text := message.get(name):
                    start, end = head if text[0] in EDGES else "", tail if text[-1] in EDGES else ""
                    probe[name] = start + self._holder() + end
                    self.texts.append(probe[name])
            if "tool_calls" in message:
                probe["tool_calls"] = self._list(CALL, count)
            messages.append(probe)
        self.conversation = Conversation(messages, tools, original.origin, original.source)

    def stand_in(self, block: Block, values: Any) -> str:
        """The placeholder that a block prints. Raises ValueError for a list that is not one of the row's."""
        if isinstance(values, Undefined):  # a message without calls
            return ""
        place = (block, [id(known) for known in self.lists].index(id(values)))
        if place not in self.blocks:
            self.blocks.append(place)
            self.texts.append(self._holder())
        return self.texts[len(self.texts) - len(self.blocks) + self.blocks.index(place)]

    def formats(self, sequences: list[RenderedSequence]) -> list[list[str]] | None:
        """Chunks as format strings, with placeholders as fields; None if a part of a placeholder remains."""
        found = []
        for sequence in sequences:
            chunks = [chunk.replace("{", "{{").replace("}", "}}") for chunk in sequence.chunks]
            for number, holder in enumerate(self.texts):
                chunks = [chunk.replace(holder, f"{{{number}}}") for chunk in chunks]
            if any("Zq" in chunk or "qZ" in chunk for chunk in chunks):
                return None
            found.append(chunks)
        return found

    def _holder(self) -> str:
        number = len(self.texts)
        return f"Zq{number}\"\\é\n&'{self.filler}{number}qZ"

    def _list(self, item: dict[str, Any], count: int) -> list[dict[str, Any]]:
        items = [item] * count
        self.lists.append(items)
        return items
