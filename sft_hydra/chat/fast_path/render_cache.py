"""Rendering without the template: once per *shape* of conversation (roles, in order), then by filling in the contents.

A skeleton is what the template made of place holders. There is one only for a shape on whose way through the template
every expression is harmless (vet.py), and it serves only contents that nothing is tested for: not empty, no white
space at their ends that the template would take away, none of the template's literals in them. Tools and calls are filled
in as the text of their blocks (tool_blocks.py), if the template prints them by these alone. The first rows of every shape
and each 256th after them are rendered by the template too; a difference raises NotCachedError, and the shard is done again
without skeletons. To make one costs about as many renders as a conversation has messages, so a longer shape must be met more
often first; rows of a length at which hardly any is served from the cache are only now and then looked up.
Invariant: the same sequences as the template makes, or none.
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

WORTH = 6  # rows of a shape before it gets a skeleton; of a longer conversation as many as it has messages
TRIED = 64  # rows of one length that are looked up whatever comes of it
SERVED = 50  # then one of so many must be served, or only each SELDOM-th is looked up
SELDOM = 8
LONGEST = 64  # messages; longer conversations count as of this length
CHECKED = 4  # rows of a new shape that the template renders too
EVERY = 256  # and then one of so many
SHAPES = 4096
FIELDS = frozenset({"role", "tool_calls", *TEXTS})

Shape = tuple[str, ...]


class Real(Protocol):
    """What renders conversations by the template."""

    def by_template(self, conversation: Conversation, trusted: bool = True) -> list[RenderedSequence]: ...

    def unchecked(self, conversation: Conversation) -> list[RenderedSequence]: ...


class NotCachedError(LearnedWrongError):
    """A skeleton gave another text than the template."""


@dataclass(slots=True)
class _CachedRender:
    """`formats[s][c]`: chunk c of sequence s as a format string of the row's contents and, after them, the texts of
    `blocks`, each of one of the row's lists of tools or calls."""

    formats: list[list[str]]
    trained: list[list[bool]]
    bare_headers: list[int]
    open_ends: list[int]
    apart: list[bool]
    literals: list[str]  # texts that no content may hold
    compared: set[str]  # texts that no content may be
    longest: int  # of these
    blocks: list[tuple[Block, int]]
    used: int = 0

    def fits(self, values: list[str]) -> bool:
        for text in values:
            if len(text) <= self.longest and text in self.compared:
                return False
            for literal in self.literals:
                if literal in text:
                    return False
        return True

    def fill(self, values: list[str]) -> list[RenderedSequence]:
        return [
            RenderedSequence([chunk.format(*values) for chunk in chunks], trained, bare, open_ends, apart)
            for chunks, trained, bare, open_ends, apart in zip(
                self.formats, self.trained, self.bare_headers, self.open_ends, self.apart, strict=True
            )
        ]


class RenderCache:
    """Skeletons of one template by shape. `renderer` is the real thing."""

    def __init__(self, template: ChatTemplate, renderer: Real) -> None:
        self.renderer = renderer
        self.template = template
        self.met: Counter[Shape] = Counter()
        self.known: dict[Shape, _CachedRender | None] = {}
        self.tried = [0] * (LONGEST + 1)  # rows of so many messages that came here
        self.served = [0] * (LONGEST + 1)  # those of them that were served

    def sequences(self, conversation: Conversation) -> list[RenderedSequence] | None:
        """The sequences of a plain conversation; None if this is a case for the template."""
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
            self.met[shape] += 1
            if self.met[shape] < max(WORTH, len(conversation.messages)) or len(self.known) >= SHAPES:
                return None
            self.known[shape] = self._make(conversation)
        skeleton = self.known[shape]
        if skeleton is None or (lists and not _add_blocks(skeleton, lists, values)) or not skeleton.fits(values):
            return None
        found = skeleton.fill(values)
        skeleton.used += 1
        if (skeleton.used <= CHECKED or skeleton.used % EVERY == 0) and found != self.renderer.by_template(
            conversation
        ):
            raise NotCachedError(conversation.origin)
        return found

    def _shape(self, conversation: Conversation, values: list[str], lists: list[Any]) -> Shape | None:
        """Roles and kinds of fields, with the contents in `values` and tools and calls in `lists`; None if a content may
        change what is printed."""
        shape: list[str] = []
        if conversation.tools:
            shape.append("")  # which is no role
            lists.append(conversation.tools)
        for message in conversation.messages:
            shape.append(message["role"])
            text = message.get("content")
            if len(message) == 2 and type(text) is str and text and text == text.strip():
                values.append(text)  # most messages, told quickly
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
        return Tracer(self.template)

    def _make(self, conversation: Conversation) -> _CachedRender | None:
        """Render the shape with place holders of two lengths; None unless each is printed as it is in both, and the way
        through the template is harmless."""
        one = PlaceholderConversation(conversation, "x", " \n", "\n ", count=1)
        two = PlaceholderConversation(conversation, "a longer text\nof two lines ", "\n ", " \n", count=2)
        try:
            self.renderer.by_template(conversation, trusted=False)
            (first, seen), (second, more) = self._trace(one), self._trace(two)
        except Exception:  # the template refuses the shape: every row of it goes the slow way and is told why
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
            return self.tracer.run(partial(self.renderer.unchecked, holders.conversation))
        finally:
            for block in blocks:
                block.stand_in = None


def _kind(text: Any) -> str | None:
    """What of a text may change how it is printed: whether there is one, and white space at its ends; None: it may
    be changed itself."""
    if type(text) is not str:
        return None
    if not text:
        return "no "
    first, last = text[0], text[-1]
    if not (first.isspace() or last.isspace()):
        return ""
    if text.isspace():  # an answer of white space alone is not learned
        return None
    if not (first in EDGES or first.isprintable()) or not (last in EDGES or last.isprintable()):
        return None
    return f"{'starts ' * (first in EDGES)}{'ends ' * (last in EDGES)}blank "


def _add_blocks(skeleton: _CachedRender, lists: list[Any], values: list[str]) -> bool:
    """Add the texts of tools and calls to a row's values; False where the template cannot print them, or not all of them."""
    try:
        with limit_resources():
            texts = [block(lists[number]) for block, number in skeleton.blocks]
    except Exception:  # whatever the template's expressions raise; it is told when the row is rendered
        return False
    values += texts
    return all(
        block.is_whole(lists[number], text) for (block, number), text in zip(skeleton.blocks, texts, strict=True)
    )
