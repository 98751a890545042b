"""What else than answers is supervised, and what of them is not: `Supervisor.sequences` for `data.roles_to_train` and
`data.mask_reasoning`.

The conversation is rendered a second time with signs around the texts in question, which tell where they stand.
Invariant: without the signs the text is the same, or the row is a RowError.
"""

import re
import secrets
from collections.abc import Callable, Iterable

from sft_hydra.chat.template import Span
from sft_hydra.chat.turn_spans import RenderedSequence, TurnNotFoundError, cut_text
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation, Message

NONCE = f"s{secrets.token_hex(8)}"
SIGN = re.compile(rf"{NONCE}([be])([tr])(\d+)s")
Render = Callable[[Conversation], list[RenderedSequence]]


class Supervisor:
    """`render` gives sequences with the answers supervised; `roles` are to be supervised; `ends`: texts of tokens that may
    close a message, which are supervised with it."""

    def __init__(self, render: Render, roles: Iterable[str], mask_reasoning: bool, ends: Iterable[str]) -> None:
        self.render = render
        self.roles = frozenset(roles)
        self.mask_reasoning = mask_reasoning
        self.ends = tuple(ends)

    def sequences(self, conversation: Conversation) -> list[RenderedSequence]:
        """Training sequences, at least one. Raises RowError."""
        plain = self.render(conversation)
        messages = [self._signed(number, message) for number, message in enumerate(conversation.messages)]
        signed = plain
        if messages != conversation.messages:
            given = conversation
            signed = self.render(
                Conversation(messages, given.tools, given.origin, given.source, given.meta, given.template_kwargs)
            )
        if [SIGN.sub("", sequence.text) for sequence in signed] != [sequence.text for sequence in plain]:
            raise RowError("turn_not_located", "the template changes what it renders when its texts are marked")
        done: set[str] = set()
        found = [self._cut(sequence, done) for sequence in signed]
        wanted = {
            f"t{n}"
            for n, old, new in _numbered(conversation.messages, messages)
            if old is not new and "t" in _kinds(new)
        }
        if wanted - done:
            raise RowError("turn_not_located", "the template does not print a message that is to be supervised")
        found = [sequence for sequence in found if any(sequence.trained)]
        if not found:
            raise RowError("nothing_to_learn", "no message that is supervised")
        return found

    def _signed(self, number: int, message: Message) -> Message:
        role, content = message["role"], message.get("content")
        if role != "assistant" and role in self.roles and isinstance(content, str) and content.strip():
            return {**message, "content": _sign(content, f"t{number}")}
        if role == "assistant" and self.mask_reasoning and message.get("reasoning_content", "").strip():
            return {**message, "reasoning_content": _sign(message["reasoning_content"], f"r{number}")}
        return message

    def _cut(self, sequence: RenderedSequence, done: set[str]) -> RenderedSequence:
        text, signs = _take_signs(sequence.text)
        spans = self._answers(sequence) if "assistant" in self.roles else []
        for name, (_, stop) in signs.items():
            if name[0] == "r":
                spans = [(max(start, stop) if start < stop <= end else start, end) for start, end in spans]
        for name, (start, stop) in signs.items():
            if name[0] == "t" and name not in done:
                done.add(name)
                closing = [end for end in self.ends if text.startswith(end, stop)]
                spans.append((start, stop + max(map(len, closing), default=0)))
        try:
            cut = cut_text(text, sorted(span for span in spans if span[0] < span[1]), sequence.bare_headers)
        except TurnNotFoundError:
            raise RowError("turn_not_located", "messages that are to be supervised overlap") from None
        cut.open_ends, cut.apart, cut.guarded = sequence.open_ends, sequence.apart, sequence.guarded
        return cut

    def _answers(self, sequence: RenderedSequence) -> list[Span]:
        """Supervised ranges of the text without signs."""
        spans: list[Span] = []
        position = 0
        for chunk, trained in zip(sequence.chunks, sequence.trained, strict=True):
            length = len(SIGN.sub("", chunk))
            if trained:
                spans.append((position, position + length))
            position += length
        return spans


def _sign(text: str, name: str) -> str:
    """Signs around what is left of a text when a template trims it."""
    core = text.strip()
    start = text.index(core)
    return f"{text[:start]}{NONCE}b{name}s{core}{NONCE}e{name}s{text[start + len(core) :]}"


def _take_signs(text: str) -> tuple[str, dict[str, Span]]:
    """The text without signs, and where the pairs of signs stood in it."""
    out: list[str] = []
    open_: dict[str, int] = {}
    found: dict[str, Span] = {}
    position = length = 0
    for match in SIGN.finditer(text):
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
    return {match[2] for match in SIGN.finditer(str(message.get("content", "")))}
