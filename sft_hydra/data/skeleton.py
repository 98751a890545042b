"""Rendering without the template: once per *shape* of conversation (roles, in order), then by filling in the contents.

A skeleton is what the template made of place holders. There is one only for a shape on whose way through the template
every expression is harmless (vet.py), and it serves only contents that nothing is tested for: not empty, no white
space at their ends that the template would take away, none of the template's literals in them. The first rows of every shape and each 64th after them
are rendered by the template too; a difference raises SkeletonError, and the shard is done again without skeletons.
Invariant: the same sequences as the template makes, or none.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from sft_hydra.data.locate import RenderedSequence
from sft_hydra.data.template import ChatTemplate
from sft_hydra.data.vet import Tracer
from sft_hydra.records import Conversation, Message

WORTH = 3  # rows of a shape before it gets a skeleton
CHECKED = 4  # rows of a new shape that the template renders too
EVERY = 64  # and then one of so many
SHAPES = 4096
EDGES = (" ", "\n")  # white space that a content may start or end with, where the template leaves it alone
FIELDS = frozenset({"role", "content", "reasoning_content"})

Render = Callable[[Conversation], list[RenderedSequence]]
Shape = tuple[str, ...]


class SkeletonError(Exception):
    """A skeleton gave another text than the template."""


@dataclass(slots=True)
class _Skeleton:
    """`formats[s][c]`: chunk c of sequence s as a format string of the row's contents."""

    formats: list[list[str]]
    trained: list[list[bool]]
    bare_headers: list[int]
    literals: list[str]  # texts that no content may hold
    compared: set[str]  # texts that no content may be
    used: int = 0

    def fits(self, values: list[str]) -> bool:
        for text in values:
            if text in self.compared:
                return False
            for literal in self.literals:
                if literal in text:
                    return False
        return True

    def fill(self, values: list[str]) -> list[RenderedSequence]:
        return [
            RenderedSequence([chunk.format(*values) for chunk in chunks], trained, bare)
            for chunks, trained, bare in zip(self.formats, self.trained, self.bare_headers, strict=True)
        ]


class Skeletons:
    """Skeletons of one template by shape. `render` is the real thing."""

    def __init__(self, template: ChatTemplate, render: Render) -> None:
        self.render = render
        self.template = template
        self.met: Counter[Shape] = Counter()
        self.known: dict[Shape, _Skeleton | None] = {}

    def sequences(self, conversation: Conversation) -> list[RenderedSequence] | None:
        """The sequences of a plain conversation; None if this is a case for the template."""
        values: list[str] = []
        shape = self._shape(conversation, values)
        if shape is None:
            return None
        if shape not in self.known:
            self.met[shape] += 1
            if self.met[shape] < WORTH or len(self.known) >= SHAPES:
                return None
            self.known[shape] = self._make(conversation)
        skeleton = self.known[shape]
        if skeleton is None or not skeleton.fits(values):
            return None
        found = skeleton.fill(values)
        skeleton.used += 1
        if (skeleton.used <= CHECKED or skeleton.used % EVERY == 0) and found != self.render(conversation):
            raise SkeletonError(conversation.origin)
        return found

    def _shape(self, conversation: Conversation, values: list[str]) -> Shape | None:
        """Roles and kinds of fields, with the contents in `values`; None if a content may change what is printed."""
        if conversation.tools:
            return None
        shape: list[str] = []
        for message in conversation.messages:
            shape.append(message["role"])
            text = message.get("content")
            if len(message) == 2 and type(text) is str and text and not (text[0].isspace() or text[-1].isspace()):
                shape.append("content")  # most messages, told quickly
                values.append(text)
                continue
            if not FIELDS.issuperset(message):
                return None
            for name in ("content", "reasoning_content"):
                text = message.get(name)
                if text is None:
                    continue
                if type(text) is not str:
                    return None
                if not text:
                    shape.append("no " + name)
                    continue
                first, last = text[0], text[-1]
                if first.isspace() or last.isspace():
                    if text.isspace():  # an answer of white space alone is not learned
                        return None
                    if not (first in EDGES or first.isprintable()) or not (last in EDGES or last.isprintable()):
                        return None
                    shape.append("starts blank" if first in EDGES else "")
                    shape.append("ends blank" if last in EDGES else "")
                shape.append(name)
                values.append(text)
        return tuple(shape)

    @cached_property
    def tracer(self) -> Tracer:
        return Tracer(self.template)

    def _make(self, conversation: Conversation) -> _Skeleton | None:
        """Render the shape with place holders of two lengths; None unless each is printed as it is in both, and the way
        through the template is harmless."""
        fillers = [("x", " \n", "\n "), ("a longer text\nof two lines ", "\n ", " \n")]
        probes = [_with_holders(conversation, *filler) for filler in fillers]
        try:
            (first, seen), (second, more) = (self.tracer.run(partial(self.render, probe)) for probe, _ in probes)
        except Exception:  # the template refuses the shape: every row of it goes the slow way and is told why
            return None
        formats = _formats(first, probes[0][1])
        literals, compared = {*seen.literals, *more.literals}, seen.compared | more.compared
        if formats is None or formats != _formats(second, probes[1][1]):
            return None
        if not (seen.harmless and more.harmless):
            return None
        if any(text in holder for text in literals for _, holders in probes for holder in holders):
            return None
        trained, bare = [s.trained for s in first], [s.bare_headers for s in first]
        return _Skeleton(formats, trained, bare, list(literals), compared)


def _formats(sequences: list[RenderedSequence], holders: list[str]) -> list[list[str]] | None:
    """Chunks with place holders as fields of format strings; None if a part of a holder is left."""
    formats = []
    for sequence in sequences:
        chunks = [chunk.replace("{", "{{").replace("}", "}}") for chunk in sequence.chunks]
        for number, holder in enumerate(holders):
            chunks = [chunk.replace(holder, f"{{{number}}}") for chunk in chunks]
        if any("Zq" in chunk or "qZ" in chunk for chunk in chunks):
            return None
        formats.append(chunks)
    return formats


def _with_holders(conversation: Conversation, filler: str, head: str, tail: str) -> tuple[Conversation, list[str]]:
    """The conversation with place holders for its contents, made of what escaping would change; with `head` and `tail`
    where a content starts or ends with white space."""
    holders: list[str] = []
    messages: list[Message] = []
    for message in conversation.messages:
        probe = dict(message)
        for name in ("content", "reasoning_content"):
            if message.get(name):
                text = message[name]
                middle = f"Zq{len(holders)}\"\\é\n&'{filler}{len(holders)}qZ"
                probe[name] = (head if text[0] in EDGES else "") + middle + (tail if text[-1] in EDGES else "")
                holders.append(probe[name])
        messages.append(probe)
    return Conversation(messages, None, conversation.origin, conversation.source), holders
