"""Supervision of other roles, and masking of reasoning: `Supervisor.sequences` for `data.roles_to_train` and
`data.mask_reasoning`.

The conversation is rendered a second time with markers around the texts in question, which locates them.
Invariant: without the markers the text is unchanged, or RowError is raised.
"""

import re
import secrets
from collections.abc import Callable, Iterable

from sft_hydra.chat.template import Span
from sft_hydra.chat.turn_spans import RenderedSequence, TurnNotFoundError, cut_text
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation, Message

NONCE = f"s{secrets.token_hex(8)}"
MARKER = re.compile(rf"{NONCE}([be])([tr])(\d+)s")
Render = Callable[[Conversation], list[RenderedSequence]]


class Supervisor:
    """`render` returns sequences in which the answers are supervised. `roles`: the roles to supervise. `ends`: texts of tokens
    that may end a message and are supervised with it."""

    def __init__(self, render: Render, roles: Iterable[str], mask_reasoning: bool, ends: Iterable[str]) -> None:
        self.render = render
        self.roles = frozenset(roles)
        self.mask_reasoning = mask_reasoning
        self.ends = tuple(ends)

    def sequences(self, conversation: Conversation) -> list[RenderedSequence]:
        """Training sequences, at least one. Raises RowError."""
        plain = self.render(conversation)
        messages = [self._marked(number, message) for number, message in enumerate(conversation.messages)]
        marked = plain
        if messages != conversation.messages:
            talk = conversation
            marked = self.render(
                Conversation(messages, talk.tools, talk.origin, talk.source, talk.meta, talk.template_kwargs)
            )
        if [MARKER.sub("", sequence.text) for sequence in marked] != [sequence.text for sequence in plain]:
            raise RowError(
                "turn_not_located",
                "the template's output changes when message texts are marked, so they cannot be located",
            )
        done: set[str] = set()
        found = [self._cut(sequence, done) for sequence in marked]
        wanted = {
            f"t{n}"
            for n, old, new in _numbered(conversation.messages, messages)
            if old is not new and "t" in _kinds(new)
        }
        if wanted - done:
            raise RowError(
                "turn_not_located", "the template does not print a message with a role of data.roles_to_train"
            )
        found = [sequence for sequence in found if any(sequence.trained)]
        if not found:
            raise RowError("nothing_to_learn", "the conversation has no supervised message")
        return found

    def _marked(self, number: int, message: Message) -> Message:
        role, content = message["role"], message.get("content")
        if role != "assistant" and role in self.roles and isinstance(content, str) and content.strip():
            return {**message, "content": _mark(content, f"t{number}")}
        if role == "assistant" and self.mask_reasoning and message.get("reasoning_content", "").strip():
            return {**message, "reasoning_content": _mark(message["reasoning_content"], f"r{number}")}
        return message

    def _cut(self, sequence: RenderedSequence, done: set[str]) -> RenderedSequence:
        text, markers = _take_markers(sequence.text)
        spans = self._answers(sequence) if "assistant" in self.roles else []
        for name, (_, stop) in markers.items():
            if name[0] == "r":
                spans = [(max(start, stop) if start < stop <= end else start, end) for start, end in spans]
        for name, (start, stop) in markers.items():
            if name[0] == "t" and name not in done:
                done.add(name)
                closing = [end for end in self.ends if text.startswith(end, stop)]
                spans.append((start, stop + max(map(len, closing), default=0)))
        try:
            cut = cut_text(text, sorted(span for span in spans if span[0] < span[1]), sequence.bare_headers)
        except TurnNotFoundError:
            raise RowError("turn_not_located", "supervised messages overlap in the rendered text") from None
        cut.open_ends, cut.apart, cut.guarded = sequence.open_ends, sequence.apart, sequence.guarded
        return cut

    def _answers(self, sequence: RenderedSequence) -> list[Span]:
        """Supervised ranges of the text without markers."""
        spans: list[Span] = []
        position = 0
        for chunk, trained in zip(sequence.chunks, sequence.trained, strict=True):
            length = len(MARKER.sub("", chunk))
            if trained:
                spans.append((position, position + length))
            position += length
        return spans


def _mark(text: str, name: str) -> str:
    """`text` with markers inside its leading and trailing white space, which templates may trim."""
    core = text.strip()
    start = text.index(core)
    return f"{text[:start]}{NONCE}b{name}s{core}{NONCE}e{name}s{text[start + len(core) :]}"


def _take_markers(text: str) -> tuple[str, dict[str, Span]]:
    """The text without markers, and the range between each pair of markers."""
    out: list[str] = []
    open_: dict[str, int] = {}
    found: dict[str, Span] = {}
    position = length = 0
    for match in MARKER.finditer(text):
        out.append(text[position : match.start()])
        length += match.start() - position
        position = match.end()
        name = match[2] + match[3]
        if match[1] == "b":
            open_[name] = length
        elif name in open_:
            found[name] = (open_.pop(name), length)
    return "".join([*out, text[position:]]), found


def _numbered(old: list[Message], new: list[Message]) -> list[tuple[int, Message, Message]]:
    return [(number, *pair) for number, pair in enumerate(zip(old, new, strict=True))]


def _kinds(message: Message) -> set[str]:
    return {match[2] for match in MARKER.finditer(str(message.get("content", "")))}
