"""A chat template that locates the text of each message: `ChatTemplate.render` and `ChatTemplate.scan`.

The template's syntax tree is edited once: a mark is added at both ends of a message loop's body, printed only if the loop
variable is one of the row's messages. One render then locates all turns of a conversation, for any template.
Invariant: marked text without its marks equals the plain text; content cannot forge a mark (a random token per process).
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes

from sft_hydra.chat.fast_path.ast_checks import string_constants
from sft_hydra.chat.jinja_env import make_environment
from sft_hydra.chat.resource_limits import limit_resources
from sft_hydra.chat.tool_blocks import Block, take_out_blocks
from sft_hydra.errors import DataError
from sft_hydra.records import Message

NONCE = f"\x1f{secrets.token_hex(8)}"
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scan:
    """A rendered text, the character ranges printed by each message (by index), and the position of the last mark (`tail`)."""

    text: str
    segments: dict[int, list[Span]]
    tail: int

    def segment_text(self, index: int) -> str:
        """The text printed by message `index`."""
        return "".join(self.text[start:stop] for start, stop in self.segments.get(index, ()))


@dataclass(frozen=True, slots=True)
class Marking:
    """Which loops are marked, numbered in source order (None: all). `assigned`: also mark the statements after
    `{% set message = messages[i] %}`."""

    loops: frozenset[int] | None
    assigned: bool


class ChatTemplate:
    """A template compiled twice: unchanged, and with marks. `variables` are the tokenizer's special tokens and the user's
    `template_kwargs`; `now` is the time of `strftime_now`. DataError for invalid Jinja."""

    def __init__(self, source: str, variables: dict[str, Any], now: datetime) -> None:
        self.source = source
        self.variables = variables
        self.environment = make_environment(lambda: now)
        self.openers: dict[int, str] = {}  # id(message) -> its mark, during a render
        self.closers: dict[int, str] = {}
        self.environment.filters["open_mark"] = lambda value: self.openers.get(id(value), "")
        self.environment.filters["close_mark"] = lambda value: self.closers.get(id(value), "")
        self.blocks: dict[Marking, dict[str, Block]] = {}
        try:
            with limit_resources():
                self.loop_sizes, self.literals, code = _compiled(source)
        except (TemplateError, RecursionError, ValueError, ArithmeticError) as problem:
            line = f", line {problem.lineno}" if isinstance(problem, TemplateSyntaxError) else ""
            raise DataError(f"tokenizer.chat_template: not a valid Jinja template ({problem}{line})") from None
        self.plain = self._template(code)
        self.unmarked = self.plain  # `plain`, or with blocks for tool definitions (use_blocks)
        self.marked: Template | None = None
        self.marking: Marking | None = None
        self.always_thinks = False  # it raises an error if thinking is disabled (template_probe.py)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, thinking: bool, prompt: bool = False
    ) -> str:
        """The text as a server renders it; `prompt` adds the generation prompt. Raises jinja2.TemplateError, or whatever the
        template's expressions raise."""
        context = self._context(messages, tools, thinking, prompt)
        with limit_resources():
            if self.unmarked is self.plain:
                return self.plain.render(context)
            blocks = self.blocks[self.marking].values() if self.marking is not None else ()
            known = sum(len(block.known) for block in blocks)
            text = self.unmarked.render(context)
            if known != sum(len(block.known) for block in blocks) and text != self.plain.render(context):
                self.unmarked = self.plain  # the template prints the new definitions differently
                text = self.plain.render(context)
            return text

    def use_blocks(self) -> None:
        """Use blocks (tool_blocks.py) for tool definitions in `render` too, so that each list is rendered once, not per text."""
        if self.marking is None or not self.blocks.get(self.marking):
            return
        tree = self.environment.parse(self.source)
        take_out_blocks(self.environment, tree, self.blocks[self.marking], calls=False)
        self.unmarked = self.compile(tree)

    def scan(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        thinking: bool,
        prompt: bool = False,
        last_only: bool = False,
    ) -> Scan:
        """`render`, with the ranges of every message, or only of the last one. `mark` must have been called."""
        assert self.marked is not None
        ids = [id(message) for message in messages]
        self.openers = dict(zip(ids, _marks("o", len(ids)), strict=False))
        self.closers = dict(zip(ids, _marks("c", len(ids)), strict=False))
        if last_only:
            self.openers = {ids[-1]: self.openers[ids[-1]]}
            self.closers = {ids[-1]: self.closers[ids[-1]]}
        try:
            with limit_resources():
                raw = self.marked.render(self._context(messages, tools, thinking, prompt))
        finally:
            self.openers, self.closers = {}, {}
        return _split_marks(raw)

    def mark(self, marking: Marking | None) -> None:
        """Compile the marked version with these marks; None removes it."""
        self.marking = marking
        self.unmarked = self.plain
        self.marked = None if marking is None else self.compile(self.marked_tree(marking))

    def marked_tree(self, marking: Marking) -> nodes.Template:
        """The template's syntax tree with marks, and with blocks for tools and calls."""
        tree = self.environment.parse(self.source)
        _Marker(marking).visit(tree)
        take_out_blocks(self.environment, tree, self.blocks.setdefault(marking, {}))
        return tree

    def compile(self, tree: nodes.Template) -> Template:
        """Compile a syntax tree in this template's environment."""
        tree.set_environment(self.environment)
        with limit_resources():
            code = self.environment.compile(tree)
        return self._template(code)

    def _template(self, code: CodeType) -> Template:
        return Template.from_code(self.environment, code, self.environment.make_globals(None))

    def markings(self) -> list[Marking]:
        """The ways of marking to try, simplest first: one loop (the largest body is nearly always the one over messages), then
        all loops, then the same with indexed messages."""
        sizes = self.loop_sizes
        order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
        choices = [frozenset({number}) for number in order] + [None]
        return [Marking(loops, assigned) for assigned in (False, True) for loops in choices]

    def _context(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, thinking: bool, prompt: bool
    ) -> dict[str, Any]:
        thinking = thinking or self.always_thinks
        return {
            "enable_thinking": thinking,
            "thinking": thinking,
            "documents": None,
            **self.variables,
            "chat_template_kwargs": {"enable_thinking": thinking, **self.variables.get("chat_template_kwargs", {})},
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": prompt,
        }


# a template is compiled for its rows, for the ends of turns, and per row of other template_kwargs
@lru_cache(maxsize=64)
def _compiled(source: str) -> tuple[list[int], frozenset[str], CodeType]:
    """Of an unchanged template: the sizes of its loops, the texts that it compares contents with, its code."""
    environment = make_environment()
    tree = environment.parse(source)
    sizes = _Marker(Marking(frozenset(), False)).visit(tree)
    literals = frozenset(string_constants(tree.find_all(nodes.Node)))
    tree.set_environment(environment)
    return sizes, literals, environment.compile(tree)


@lru_cache(maxsize=256)
def _marks(kind: str, messages: int) -> list[str]:
    return [f"{NONCE}{kind}{index};" for index in range(messages)]


class _Marker:
    """Adds marks to a syntax tree in place; `visit` returns the number of nodes of every loop, in source order."""

    def __init__(self, marking: Marking) -> None:
        self.marking = marking
        self.sizes: list[int] = []

    def visit(self, tree: nodes.Template) -> list[int]:
        tree.body = self._walk(tree.body)
        return self.sizes

    def _walk(self, body: list[Any]) -> list[Any]:
        out: list[Any] = []
        closing: list[nodes.Node] = []
        for statement in body:
            for field in ("body", "else_"):
                if isinstance(getattr(statement, field, None), list):
                    setattr(statement, field, self._walk(getattr(statement, field)))
            for branch in getattr(statement, "elif_", ()):
                branch.body = self._walk(branch.body)
            if isinstance(statement, nodes.For) and isinstance(statement.target, nodes.Name):
                self._visit_loop(statement, statement.target)
            out.append(statement)
            if self.marking.assigned and _takes_item(statement):
                out.append(_print_filter(statement.target, "open_mark"))
                closing.insert(0, _print_filter(statement.target, "close_mark"))
        return out + closing

    def _visit_loop(self, loop: nodes.For, target: nodes.Name) -> None:
        number = len(self.sizes)
        self.sizes.append(sum(1 for _ in loop.find_all(nodes.Node)))
        if self.marking.loops is None or number in self.marking.loops:
            loop.body = [_print_filter(target, "open_mark"), *loop.body, _print_filter(target, "close_mark")]


def _takes_item(statement: nodes.Node) -> bool:
    return (
        isinstance(statement, nodes.Assign)
        and isinstance(statement.target, nodes.Name)
        and isinstance(statement.node, nodes.Getitem)
    )


def _print_filter(target: Any, name: str) -> nodes.Output:
    value = nodes.Name(target.name, "load")
    return nodes.Output([nodes.Filter(value, name, [], [], None, None)], lineno=target.lineno)


def _split_marks(raw: str) -> Scan:
    """Remove the marks. A message's ranges are the text between its marks, without that of marks nested inside."""
    first, *pieces = raw.split(NONCE)  # faster than a regular expression
    out, position, tail = [first], len(first), 0
    stack: list[int] = []
    segments: dict[int, list[Span]] = {}
    for piece in pieces:
        end = piece.index(";")
        index, literal = int(piece[1:end]), piece[end + 1 :]
        if piece[0] == "o":
            stack.append(index)
        elif index in stack:
            while stack.pop() != index:
                pass
        tail = position
        if literal:
            out.append(literal)
            position += len(literal)
            if stack:
                spans = segments.get(stack[-1])
                if spans is None:
                    segments[stack[-1]] = [(tail, position)]
                elif spans[-1][1] == tail:
                    spans[-1] = (spans[-1][0], position)
                else:
                    spans.append((tail, position))
    return Scan("".join(out), segments, tail)


__all__ = ["ChatTemplate", "Marking", "Scan", "Span", "TemplateError"]
