"""Cached rendering: the template runs once per *shape* of conversation (roles and fields, in order), then contents are filled in.

A cache entry is the template's output for placeholders. A shape gets one only if every expression that its render executes is
content-independent (ast_checks.py). It serves only contents that the template's tests do not distinguish: not empty, without
white space at the ends that the template would trim, without the template's literals. Tools and calls are filled in as the text
of their blocks (tool_blocks.py), if only blocks print them. The first CHECKED rows of a shape and every EVERY-th are also
rendered by the template; a difference raises NotCachedError, and the shard is rendered again without the cache. Making an entry
costs about one render per message, so longer shapes must occur more often first; conversation lengths that are rarely served
from the cache are looked up only now and then. Few rows are rendered without the cache, whose first entry takes longest.
Invariant: the same sequences as the template's, or None.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

from sft_hydra.chat.checks import LearnedWrongError
from sft_hydra.chat.fast_path.branch_tracer import Findings, Tracer
from sft_hydra.chat.fast_path.placeholders import EDGES, TEXTS, PlaceholderConversation
from sft_hydra.chat.resource_limits import limit_resources
from sft_hydra.chat.template import ChatTemplate
from sft_hydra.chat.tool_blocks import Block
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.records import Conversation

START = 2000  # messages that entries would have served before the first is made: compiling the tracer costs as much as these
MANY_ROWS = 1000  # expected rows for which the first entry is made at once
WORTH = 6  # rows of a shape before it is cached; for longer conversations, as many as they have messages
TRIED = 64  # rows of one length that are always looked up
SERVED = 50  # then one of this many must be served, else only every SELDOM-th is looked up
SELDOM = 8
LONGEST = 64  # messages; longer conversations count as of this length
CHECKED = 4  # first rows of a shape that the template renders too
EVERY = 256  # and then one of this many
SHAPES = 4096  # maximum number of cached shapes
FIELDS = frozenset({"role", "tool_calls", *TEXTS})

Shape = tuple[str, ...]


class TemplateRenderer(Protocol):
    """Renders conversations with the template (render.Renderer)."""

    def by_template(self, conversation: Conversation, trusted: bool = True) -> list[RenderedSequence]:
        """See render.Renderer."""
        ...

    def of_stand_ins(self, conversation: Conversation) -> list[RenderedSequence]:
        """See render.Renderer."""
        ...


class NotCachedError(LearnedWrongError):
    """A cached render differs from the template's."""


@dataclass(slots=True)
class _CachedRender:
    """`formats[s][c]`: chunk c of sequence s as a format string; its fields are the row's contents, then the texts of `blocks`,
    each for one of the row's lists of tools or calls."""

    formats: list[list[str]]
    trained: list[list[bool]]
    bare_headers: list[int]
    open_ends: list[int]
    apart: list[bool]
    literals: list[str]  # texts that contents must not contain
    compared: set[str]  # texts that contents must not equal
    longest: int  # length of the longest of `compared`
    blocks: list[tuple[Block, int]]
    used: int = 0

    def fits(self, values: list[str]) -> bool:
        """Whether the template renders these contents as it did the placeholders."""
        for text in values:
            if len(text) <= self.longest and text in self.compared:
                return False
            for literal in self.literals:
                if literal in text:
                    return False
        return True

    def fill(self, values: list[str]) -> list[RenderedSequence]:
        """The sequences with these contents."""
        return [
            RenderedSequence([chunk.format(*values) for chunk in chunks], trained, bare, open_ends, apart)
            for chunks, trained, bare, open_ends, apart in zip(
                self.formats, self.trained, self.bare_headers, self.open_ends, self.apart, strict=True
            )
        ]


class RenderCache:
    """Cached renders of one template by shape. `renderer` renders without the cache."""

    def __init__(self, template: ChatTemplate, renderer: TemplateRenderer) -> None:
        self.renderer = renderer
        self.template = template
        self.seen: Counter[Shape] = Counter()
        self.start = START
        self.could_serve = 0  # messages of rows that entries would have served
        self.known: dict[Shape, _CachedRender | None] = {}
        self.tried = [0] * (LONGEST + 1)  # number of messages -> rows
        self.served = [0] * (LONGEST + 1)  # number of messages -> rows served from the cache

    def expect(self, rows: int) -> None:
        """Announce the number of rows to render, which decides whether to make the first entry at once."""
        self.start = 0 if rows >= MANY_ROWS else START

    def sequences(self, conversation: Conversation) -> list[RenderedSequence] | None:
        """The sequences of a conversation; None if the template must render it. Raises NotCachedError."""
        if self.could_serve < self.start:
            return self._look_up(conversation)
        size = min(len(conversation.messages), LONGEST)
        self.tried[size] = tried = self.tried[size] + 1
        if tried > TRIED and self.served[size] * SERVED < tried and tried % SELDOM:
            return None
        found = self._look_up(conversation)
        self.served[size] += found is not None
        return found

    def _look_up(self, conversation: Conversation) -> list[RenderedSequence] | None:
        values: list[str] = []
        lists: list[Any] = []
        shape = self._shape(conversation, values, lists)
        if shape is None:
            return None
        if shape not in self.known:
            self.seen[shape] += 1
            if self.seen[shape] < max(WORTH, len(conversation.messages)) or len(self.known) >= SHAPES:
                return None
            self.could_serve += len(conversation.messages)
            if self.could_serve < self.start:
                return None
            self.known[shape] = self._make(conversation)
        entry = self.known[shape]
        if entry is None or (lists and not _add_blocks(entry, lists, values)) or not entry.fits(values):
            return None
        found = entry.fill(values)
        entry.used += 1
        if entry.used <= CHECKED or entry.used % EVERY == 0:
            rendered = self.renderer.by_template(conversation)
            if found != rendered and entry.used == 1:  # this shape cannot be cached; no row was served
                self.known[shape] = None
                return rendered
            if found != rendered:
                raise NotCachedError(conversation.origin)
        return found

    def _shape(self, conversation: Conversation, values: list[str], lists: list[Any]) -> Shape | None:
        """Roles and kinds of fields; contents are added to `values`, tools and calls to `lists`. None if a content may change
        how the conversation is rendered."""
        shape: list[str] = []
        if conversation.tools:
            shape.append("")  # not a role
            lists.append(conversation.tools)
        for message in conversation.messages:
            shape.append(message["role"])
            text = message.get("content")
            if len(message) == 2 and type(text) is str and text and text == text.strip():
                values.append(text)  # fast path for most messages
                continue
            if not FIELDS.issuperset(message):
                return None
            shape.append("")
            for name in TEXTS:
                text = message.get(name)
                if text is None:
                    continue
                kind = _kind(text)
                if kind is None:
                    return None
                shape.append(kind + name)
                if text:
                    values.append(text)
            if "tool_calls" in message:
                shape.append("tool_calls")
                lists.append(message["tool_calls"])
            shape.append("")
        return tuple(shape)

    @cached_property
    def tracer(self) -> Tracer:
        """The tracer of the template, compiled at first use."""
        return Tracer(self.template)

    def _make(self, conversation: Conversation) -> _CachedRender | None:
        """Render the shape with placeholders of two lengths; None unless both are printed unchanged and all executed branches
        are content-independent."""
        one = PlaceholderConversation(conversation, "x", " \n", "\n ", count=1)
        two = PlaceholderConversation(conversation, "a longer text\nof two lines ", "\n ", " \n", count=2)
        try:
            self.renderer.by_template(conversation, trusted=False)
            (first, seen), (second, more) = self._trace(one), self._trace(two)
        except Exception:  # the template raises for this shape: each row gets the error from a plain render
            return None
        literals, compared = {*seen.literals, *more.literals}, seen.compared | more.compared
        formats = one.formats(first)
        if formats is None or formats != two.formats(second) or one.blocks != two.blocks:
            return None
        if not (seen.harmless and more.harmless and (not one.lists or (seen.blocks and more.blocks))):
            return None
        if any(text in holder for text in literals for holder in one.texts + two.texts):
            return None
        trained, open_ends = [s.trained for s in first], [s.open_ends for s in first]
        bare = [s.bare_headers for s in first]
        longest = max(map(len, compared), default=-1)
        return _CachedRender(
            formats, trained, bare, open_ends, [s.apart for s in first], list(literals), compared, longest, one.blocks
        )

    def _trace(self, holders: PlaceholderConversation) -> tuple[list[RenderedSequence], Findings]:
        blocks = self.template.blocks[self.tracer.marking].values()
        for block in blocks:
            block.stand_in = holders.stand_in
        try:
            return self.tracer.run(partial(self.renderer.of_stand_ins, holders.conversation))
        finally:
            for block in blocks:
                block.stand_in = None


def _kind(text: Any) -> str | None:
    """The kind of a text for the shape: whether it is empty, and white space at its ends; None: the template may change it."""
    if type(text) is not str:
        return None
    if not text:
        return "no "
    first, last = text[0], text[-1]
    if not (first.isspace() or last.isspace()):
        return ""
    if text.isspace():  # an answer of white space only is not supervised
        return None
    if not (first in EDGES or first.isprintable()) or not (last in EDGES or last.isprintable()):
        return None
    return f"{'starts ' * (first in EDGES)}{'ends ' * (last in EDGES)}blank "


def _add_blocks(entry: _CachedRender, lists: list[Any], values: list[str]) -> bool:
    """Add the texts of tools and calls to a row's values. False if a block fails or leaves a part out."""
    try:
        with limit_resources():
            texts = [block(lists[number]) for block, number in entry.blocks]
    except Exception:  # whatever the template's expressions raise; rendering the row reports it
        return False
    values += texts
    return all(block.is_whole(lists[number], text) for (block, number), text in zip(entry.blocks, texts, strict=True))
