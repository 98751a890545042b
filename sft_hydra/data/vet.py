"""What a template does to contents, read from its syntax tree: `literals` (texts it looks for) and `is_harmless` (an
expression whose result depends on a content only by printing and trimming it, by such texts, and by its being there).

`Tracer` tells which parts of the tree a render goes through, so that only these need to be harmless.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import nodes

from sft_hydra.data.template import ChatTemplate
from sft_hydra.data.tool_blocks import PREFIX

T = TypeVar("T")

FILTERS = {"trim", "tojson", "safe", "string", "default", "d", "length", "count", "items", "list", "join", "selectattr"}
MARKS = {"open_mark", "close_mark", "visited"}
METHODS = {"strip", "lstrip", "rstrip", "split", "startswith", "endswith", "items", "keys", "get"}
TESTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "true", "false", "boolean"}


def literals(parts: Iterable[nodes.Node]) -> set[str]:
    """Texts that these parts of a template search or split contents with: a content that holds one of them may change
    how its message is rendered."""
    parts = list(parts)
    found: set[str] = set()
    for node in parts:
        if isinstance(node, nodes.Compare):
            for operand in node.ops:
                if operand.op in ("in", "notin"):
                    found |= _constants([node.expr, operand.expr])
                    if not _constants([node.expr]):  # searched for by a name: any text that was given one
                        named = [part for part in parts if isinstance(part, nodes.Assign | nodes.Call)]
                        found |= _constants(named)
        elif isinstance(node, nodes.Filter) or (isinstance(node, nodes.Call) and not isinstance(node.node, nodes.Name)):
            found |= _constants(node.args or [])
    return {text for text in found if text.strip()}


def compared(parts: Iterable[nodes.Node]) -> set[str]:
    """Texts that something is equal to or not."""
    return _constants(node for node in parts if isinstance(node, nodes.Compare))


def is_harmless(node: nodes.Node) -> bool:
    """True for a node of an executed part that treats contents as the docstring above says."""
    if isinstance(node, nodes.Filter):
        return node.name in FILTERS or node.name in MARKS or node.name.startswith(PREFIX)
    if isinstance(node, nodes.Test):
        return node.name in TESTS
    if isinstance(node, nodes.Getitem):
        return _is_harmless_index(node)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return _is_harmless_method(node.node.attr, node.args)
    if isinstance(node, nodes.Compare):
        return all(_is_harmless_compare(operand.op, node.expr, operand.expr) for operand in node.ops)
    return True


def _is_harmless_index(node: nodes.Getitem) -> bool:
    """`messages[0]`, `x['content']`, `content.split(...)[-1]`; not a part of a text."""
    if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return True
    return isinstance(node.node, nodes.Call) or (isinstance(node.node, nodes.Name) and "messages" in node.node.name)


def _is_harmless_method(name: str, arguments: list[nodes.Expr]) -> bool:
    values = [argument.value for argument in arguments if isinstance(argument, nodes.Const)]
    if name not in METHODS or len(values) < len(arguments):
        return False
    return name != "split" or (bool(values) and str(values[0]).strip() != "")


def _is_harmless_compare(op: str, left: nodes.Expr, right: nodes.Expr) -> bool:
    sides = (left, right)
    constants = [side.value for side in sides if isinstance(side, nodes.Const)]
    counted = [side.node for side in sides if isinstance(side, nodes.Filter) and side.name in ("length", "count")]
    if counted:  # empty or not; how many only of messages
        about_messages = all(isinstance(node, nodes.Name) and "messages" in node.name for node in counted)
        return about_messages or (bool(constants) and all(value == 0 for value in constants))
    if op in ("in", "notin"):
        return all(not isinstance(value, str) or value.strip() for value in constants)
    if op in ("eq", "ne"):  # two contents must not be compared with each other
        return bool(constants) or not all(_may_be_text(side) for side in sides)
    return True


def _may_be_text(node: nodes.Expr) -> bool:
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop":
        return False
    return isinstance(node, nodes.Name | nodes.Getitem | nodes.Getattr | nodes.Filter | nodes.Call)


def _constants(parts: Iterable[nodes.Node]) -> set[str]:
    """Texts in expressions, the expressions themselves included."""
    found: set[str] = set()
    for part in parts:
        constants = [part] if isinstance(part, nodes.Const) else part.find_all(nodes.Const)
        found |= {const.value for const in constants if isinstance(const.value, str)}
    return found


@dataclass(frozen=True, slots=True)
class Findings:
    """What the branches that a render went through do to contents: `literals` that no content may hold and `compared`
    texts that none may be, if they are `harmless` at all."""

    harmless: bool
    literals: list[str]
    compared: set[str]


class Tracer:
    """Renders a template so that it can be told which of its branches were gone through."""

    def __init__(self, template: ChatTemplate) -> None:
        assert template.marking is not None
        self.template = template
        self.bodies: list[list[nodes.Node]] = []  # of each branch: the nodes that are its own
        self.seen: set[int] = set()
        self.known: dict[frozenset[int], Findings] = {}
        template.environment.filters["visited"] = self._visited
        marked = template.marked_tree(template.marking)
        self._enter(marked.body)
        self.traced = template.compile(marked)

    def run(self, work: Callable[[], T]) -> tuple[T, Findings]:
        """What `work` returns when all that it renders is traced, and what the template did on the way."""
        template = self.template
        plain, marked = template.plain, template.marked
        template.plain = template.marked = self.traced
        self.seen.clear()
        try:
            result = work()
        finally:
            template.plain, template.marked = plain, marked
        branches = frozenset(self.seen)
        if branches not in self.known:
            parts = [node for branch in sorted(branches) for node in self.bodies[branch]]
            texts = literals(parts)
            shortest = [text for text in texts if not any(other != text and other in text for other in texts)]
            self.known[branches] = Findings(all(map(is_harmless, parts)), shortest, compared(parts))
        return result, self.known[branches]

    def _visited(self, _: Any, branch: int) -> str:
        self.seen.add(branch)
        return ""

    def _enter(self, body: list[nodes.Node]) -> None:
        """Put a sign at the start of a branch and of all branches in it."""
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
        anything = nodes.Name("messages", "load")  # a filter of constants would be computed before any render
        sign = nodes.Filter(anything, "visited", [nodes.Const(number)], [], None, None)
        body.insert(0, nodes.Output([sign], lineno=1))


def _own_nodes(statement: nodes.Node, branches: list[list[nodes.Node]]) -> list[nodes.Node]:
    """The statement's nodes that are not in a branch of it."""
    inside = {id(node) for branch in branches for part in branch for node in (part, *part.find_all(nodes.Node))}
    return [node for node in (statement, *statement.find_all(nodes.Node)) if id(node) not in inside]
