"""Rendering without the template: once per *shape* of conversation (roles, in order), then by filling in the contents.

A skeleton is what the template made of place holders. There is one only for a shape on whose way through the template
every expression is harmless (vet.py), and it serves only contents that nothing is tested for: of two letters or more, no
white space at their ends, none of the template's literals in them. The first rows of every shape and each 64th after them
are rendered by the template too; a difference raises SkeletonError, and the shard is done again without skeletons.
Invariant: the same sequences as the template makes, or none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sft_hydra.data.locate import RenderedSequence
from sft_hydra.data.template import ChatTemplate
from sft_hydra.data.vet import Tracer, compared, is_harmless, literals
from sft_hydra.records import Conversation, Message

CHECKED = 4  # rows of a new shape that the template renders too
EVERY = 64  # and then one of so many
SHAPES = 4096
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
        self.tracer = Tracer(template)
        self.known: dict[Shape, _Skeleton | None] = {}

    def sequences(self, conversation: Conversation) -> list[RenderedSequence] | None:
        """The sequences of a plain conversation; None if this is a case for the template."""
        values: list[str] = []
        shape = self._shape(conversation, values)
        if shape is None:
            return None
        if shape not in self.known:
            if len(self.known) >= SHAPES:
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
            if not FIELDS.issuperset(message):
                return None
            for name in ("content", "reasoning_content"):
                text = message.get(name)
                if text is None:
                    continue
                if type(text) is not str or len(text) < 2 or text[0].isspace() or text[-1].isspace():
                    return None
                shape.append(name)
                values.append(text)
        return tuple(shape)

    def _make(self, conversation: Conversation) -> _Skeleton | None:
        """Render the shape with place holders of two lengths; None unless each is printed as it is in both, and the way
        through the template is harmless."""
        probes = [_with_holders(conversation, filler) for filler in ("x", "a longer text\nof two lines ")]
        try:
            (first, parts), (second, more) = (self.tracer.run(partial(self.render, probe)) for probe, _ in probes)
        except Exception:  # the template refuses the shape: every row of it goes the slow way and is told why
            return None
        parts += more
        found = literals(parts)
        formats = _formats(first, probes[0][1])
        if formats is None or formats != _formats(second, probes[1][1]) or not all(map(is_harmless, parts)):
            return None
        if any(text in holder for text in found for _, holders in probes for holder in holders):
            return None
        trained, bare = [s.trained for s in first], [s.bare_headers for s in first]
        return _Skeleton(formats, trained, bare, _shortest(found), compared(parts))


def _with_holders(conversation: Conversation, filler: str) -> tuple[Conversation, list[str]]:
    """The conversation with place holders for its contents, made of what escaping would change."""
    holders: list[str] = []
    messages: list[Message] = []
    for message in conversation.messages:
        probe = dict(message)
        for name in ("content", "reasoning_content"):
            if name in message:
                holders.append(f"Zq{len(holders)}\"\\é\n&'{filler}{len(holders)}qZ")
                probe[name] = holders[-1]
        messages.append(probe)
    return Conversation(messages, None, conversation.origin, conversation.source), holders


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


def _shortest(literals: set[str]) -> list[str]:
    """Literals that no other is part of: a text without these has none of the others."""
    return [text for text in literals if not any(other != text and other in text for other in literals)]
