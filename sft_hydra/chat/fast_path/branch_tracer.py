"""Records which branches of a template a render executes, so that only these are checked (ast_checks.py): `Tracer`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import nodes

from sft_hydra.chat.fast_path.ast_checks import (
    blocks_are_printed,
    compared_constants,
    is_content_independent,
    leaves_tools_to_blocks,
    string_constants,
)
from sft_hydra.chat.template import ChatTemplate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Findings:
    """Properties of the branches that a render executed.

    `harmless`: all of them are content-independent, for contents that contain none of `literals` and equal none of
    `compared`. `blocks`: tools and calls are printed only by blocks."""

    harmless: bool
    blocks: bool
    literals: list[str]
    compared: set[str]


class Tracer:
    """A template with a filter at the start of every branch that records its execution."""

    def __init__(self, template: ChatTemplate) -> None:
        assert template.marking is not None
        self.template = template
        self.marking = template.marking
        self.bodies: list[list[nodes.Node]] = []  # branch -> its nodes, without those of nested branches
        self.seen: set[int] = set()
        self.known: dict[frozenset[int], Findings] = {}
        template.environment.filters["visited"] = self._visited
        marked = template.marked_tree(self.marking)
        self.prints_blocks = blocks_are_printed(marked)
        self._enter(marked.body)
        self.traced = template.compile(marked)

    def run(self, work: Callable[[], T]) -> tuple[T, Findings]:
        """(result of `work`, findings about the branches that its renders executed)."""
        template = self.template
        plain, unmarked, marked = template.plain, template.unmarked, template.marked
        template.plain = template.unmarked = template.marked = self.traced
        self.seen.clear()
        try:
            result = work()
        finally:
            template.plain, template.unmarked, template.marked = plain, unmarked, marked
        branches = frozenset(self.seen)
        if branches not in self.known:
            parts = [node for branch in sorted(branches) for node in self.bodies[branch]]
            texts = string_constants(parts)
            shortest = [text for text in texts if not any(other != text and other in text for other in texts)]
            blocks = self.prints_blocks and leaves_tools_to_blocks(parts)
            self.known[branches] = Findings(
                all(map(is_content_independent, parts)), blocks, shortest, compared_constants(parts)
            )
        return result, self.known[branches]

    def _visited(self, _: Any, branch: int) -> str:
        self.seen.add(branch)
        return ""

    def _enter(self, body: list[nodes.Node]) -> None:
        """Add the recording filter at the start of a branch and of all nested branches."""
        own: list[nodes.Node] = []
        number = len(self.bodies)
        self.bodies.append(own)
        for statement in body:
            inner = [getattr(statement, name, None) for name in ("body", "else_")]
            inner += [branch.body for branch in getattr(statement, "elif_", ())]
            branches = [branch for branch in inner if isinstance(branch, list) and branch]
            own += _own_nodes(statement, branches)
            for branch in branches:
                self._enter(branch)
        anything = nodes.Name("messages", "load")  # a filter of a constant would be evaluated at compile time
        sign = nodes.Filter(anything, "visited", [nodes.Const(number)], [], None, None)
        body.insert(0, nodes.Output([sign], lineno=1))


def _own_nodes(statement: nodes.Node, branches: list[list[nodes.Node]]) -> list[nodes.Node]:
    """The statement's nodes outside its branches."""
    inside = {id(node) for branch in branches for node in branch}
    found = [statement]
    for node in found:  # grows during the iteration
        found += [child for child in node.iter_child_nodes() if id(child) not in inside]
    return found
