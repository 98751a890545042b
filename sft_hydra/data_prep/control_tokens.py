"""Escaping of control-token text in message contents, so that it is encoded as ordinary text.

`ControlTokenEscaper.mark` inserts a random word into every such text before the template is rendered;
`ControlTokenEscaper.encode` removes the word and encodes these texts as ordinary text, and those that the template itself
printed as control tokens.
Invariant: untrusted content never yields the id of a control token, and the text itself is unchanged.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import orjson
from tokenizers import Tokenizer

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation, Message

WORD = f"g{secrets.token_hex(8)}"


class ControlTokenEscaper:
    """Escapes control-token text for one tokenizer. `encode_ordinary`: a fast encoder that ignores added tokens, if there is
    one. In user, system and tool texts every added token is escaped; in assistant texts only those marked special
    (`<think>` and `<tool_call>` are not, and keep their meaning there)."""

    def __init__(self, tokenizer: ChatTokenizer, encode_ordinary: Callable[[str], list[int]] | None = None) -> None:
        self.file = tokenizer.file
        self.unknown_id = tokenizer.unknown_id
        self.encode_ordinary = encode_ordinary or self._encode_slowly
        self.added = {token.text: token for token in tokenizer.added if token.text.strip()}
        self.every = _finder(tuple(self.added))
        self.special = _finder(tuple(text for text, token in self.added.items() if token.special))
        self.shows_in_json = not any(sign < " " or sign in '"\\' for text in self.added for sign in text)

    def is_needed(self, conversation: Conversation, serialized: bytes | None = None) -> bool:
        """True if a text of this row contains the text of a control token. `serialized`: the row's texts as orjson writes them,
        which shows quickly for most rows that it does not."""
        if serialized is not None and self.shows_in_json and not self.every.finds_in_bytes(serialized):
            return False
        for message in conversation.messages:
            finder = self.special if message["role"] == "assistant" else self.every
            content = message.get("content")
            if type(content) is str and finder.finds(content):
                return True
            if len(message) > 2 and self._is_in(message, finder):
                return True
        others = conversation.tools, conversation.template_kwargs
        return any(value and self._is_in(value, self.every) for value in others)

    def _is_in(self, value: Any, finder: "_Finder") -> bool:
        """True if a text inside a JSON value contains a control token. Tests the serialized JSON where that is equivalent."""
        if self.shows_in_json:
            try:
                return finder.finds(orjson.dumps(value).decode())
            except TypeError:  # an integer of more than 64 bits
                pass
        found = False

        def look(text: str) -> str:
            nonlocal found
            found = found or finder.finds(text)
            return text

        _map(value, look)
        return found

    def mark(self, conversation: Conversation) -> Conversation:
        """A copy in which WORD splits every control-token text."""
        messages = [
            _map_message(message, self.special if message["role"] == "assistant" else self.every, _break)
            for message in conversation.messages
        ]
        tools = [_map(tool, lambda text: _break(text, self.every)) for tool in conversation.tools or ()]
        kwargs = _map(conversation.template_kwargs, lambda text: _break(text, self.every))
        before = conversation
        return Conversation(
            messages, tools or None, before.origin, before.source, before.meta, kwargs, is_text=before.is_text
        )

    def encode(self, chunk: str) -> list[int]:
        """Token ids of a chunk of marked text. RowError if a control token cannot be encoded as plain text."""
        ids: list[int] = []
        position = 0
        for match in self.every.pattern.finditer(chunk):
            ids += self._encode_ordinary(chunk[position : match.start()])
            ids.append(self.added[match[0]].id)
            position = match.end()
            if self.added[match[0]].rstrip:
                position += len(chunk) - position - len(chunk[position:].lstrip())
        return ids + self._encode_ordinary(chunk[position:])

    def _encode_ordinary(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self.encode_ordinary(text.replace(WORD, ""))
        if not self.ids.isdisjoint(ids):
            raise RowError(
                "control_text", "contains a control token that cannot be encoded as plain text by this tokenizer"
            )
        return ids

    def _encode_slowly(self, text: str) -> list[int]:
        return self.ordinary.encode(text, add_special_tokens=False).ids

    @cached_property
    def ids(self) -> set[int]:
        """Ids of all added tokens but the unknown token."""
        return {token.id for token in self.added.values()} - {self.unknown_id}

    @cached_property
    def ordinary(self) -> Tokenizer:
        """The tokenizer without its added tokens, loaded at first use."""
        spec = json.loads(self.file.read_text(encoding="utf-8"))
        return Tokenizer.from_str(json.dumps({**spec, "added_tokens": [], "post_processor": None}))


class _Finder:
    """Searches for many texts with one pattern, after a cheap test of their first characters."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.firsts = sorted({text[0] for text in texts})
        self.pattern = re.compile(any_of(texts))
        # a pattern for each first character skips to where that occurs, three times as fast as one pattern for all
        groups = [[text for text in texts if text[0] == first] for first in self.firsts]
        self.in_bytes = [re.compile(any_of(group).encode()) for group in groups]

    def finds_in_bytes(self, data: bytes) -> bool:
        """Whether one of the texts is in a UTF-8 text."""
        for pattern in self.in_bytes:  # noqa: SIM110 (any() is slower)
            if pattern.search(data):
                return True
        return False

    def finds(self, text: str) -> bool:
        for first in self.firsts:
            if first in text:
                return self.pattern.search(text) is not None
        return False


@lru_cache(maxsize=8)
def _finder(texts: tuple[str, ...]) -> _Finder:
    """A finder of these texts; making one takes some hundredths of a second for a thousand control tokens."""
    return _Finder(texts)


def any_of(texts: Sequence[str]) -> str:
    """A regular expression that matches the longest of these texts; common prefixes are factored out."""
    if not texts:
        return r"(?!)"
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text[1:])
    branches = [re.escape(first) + any_of(rest) for first, rest in groups.items() if first]
    pattern = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})" if branches else ""
    return f"(?:{pattern})?" if "" in groups and pattern else pattern


def _break(text: str, finder: _Finder) -> str:
    return finder.pattern.sub(lambda match: match[0][0] + WORD + match[0][1:], text)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map(item, change) for item in value]
    return value


def _map_message(message: Message, finder: _Finder, change: Callable[[str, _Finder], str]) -> Message:
    return {
        key: value if key == "role" else _map(value, lambda text: change(text, finder))
        for key, value in message.items()
    }
