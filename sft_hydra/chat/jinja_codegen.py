"""Compiles the most frequent expressions of chat templates to Python that does not call the environment: `InlineCodeGenerator`.

These are keys of a variable (`message.role`), tests and `trim` of it or of such a key, calls of string methods, and
concatenations. Each is written twice: in place, for a plain dict, string or loop, and as Jinja compiles it, for everything else.
Invariant: the same values and the same errors as Jinja's own code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

DICT_NAMES = frozenset(dir(dict))
LOOP_NAMES = frozenset(["index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"])
SAFE_STR_METHODS = frozenset(
    [
        "strip",
        "lstrip",
        "rstrip",
        "split",
        "rsplit",
        "startswith",
        "endswith",
        "replace",
        "lower",
        "upper",
        "title",
        "capitalize",
    ]
)
PLAIN_CONTAINERS = "(str, list, dict)"


class _Subject(NamedTuple):
    """A variable, or a key of one: `source` is its value where `guard` is true, `holder` and `key` its parts."""

    guard: str
    source: str
    holder: str
    key: str | None


class InlineCodeGenerator(CodeGenerator):
    """See the module docstring."""

    namespaces: frozenset[str] = frozenset()  # variables that hold a `namespace()`

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802 (the base class names it so)
        """A whole template."""
        self.namespaces = frozenset(
            found.target.name
            for found in node.find_all(nodes.Assign)
            if isinstance(found.target, nodes.Name)
            and isinstance(found.node, nodes.Call)
            and isinstance(found.node.node, nodes.Name)
            and found.node.node.name == "namespace"
        )
        super().visit_Template(node, frame)

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:  # noqa: N802
        """`node.node.attr`."""
        name = node.node.name if isinstance(node.node, nodes.Name) else None
        if name == "loop" and node.attr in LOOP_NAMES:
            loop = frame.symbols.ref("loop")
            self._write_either(
                f"{loop}.{node.attr}", f"{loop}.__class__ is LoopContext", super().visit_Getattr, node, frame
            )
        elif name in self.namespaces and not node.attr.startswith("_"):
            holder = frame.symbols.ref(name)
            values = f"object.__getattribute__({holder}, '_Namespace__attrs')"
            is_there = f"type({holder}) is Namespace and {node.attr!r} in {values}"
            self._write_either(f"{values}[{node.attr!r}]", is_there, super().visit_Getattr, node, frame)
        else:
            self._visit_key(node, frame, super().visit_Getattr)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        """`node.node[node.arg]`."""
        self._visit_key(node, frame, super().visit_Getitem)

    def visit_Test(self, node: nodes.Test, frame: Frame) -> None:  # noqa: N802
        """`node.node is name`."""
        subject = None if _arguments(node) else _subject(node.node, frame)
        if subject is None or node.name not in (
            "defined",
            "undefined",
            "none",
            "string",
            "mapping",
            "iterable",
            "sequence",
        ):
            super().visit_Test(node, frame)
        elif node.name in ("defined", "undefined"):
            self._write_either(
                f"{'not ' * (node.name == 'undefined')}{_is_defined(subject)}",
                "True" if subject.key is None else f"{subject.holder}.__class__ is dict",
                super().visit_Test,
                node,
                frame,
            )
        else:
            source = subject.source
            plain = {
                "none": f"{source} is None",
                "string": f"{source}.__class__ is str",
                "mapping": f"{source}.__class__ is dict",
            }.get(node.name, f"{source}.__class__ in {PLAIN_CONTAINERS}")
            self._write_either("True", f"{subject.guard}{plain}", super().visit_Test, node, frame)

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:  # noqa: N802
        """`node.node | name`."""
        subject = _subject(node.node, frame) if node.name == "trim" and not _arguments(node) else None
        if subject is None:
            super().visit_Filter(node, frame)
            return
        is_text = f"{subject.guard}{subject.source}.__class__ is str"
        self._write_either(f"{subject.source}.strip()", is_text, super().visit_Filter, node, frame)

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: N802
        """`node.node(arguments)`."""
        method = node.node
        arguments = [argument.value for argument in node.args if isinstance(argument, nodes.Const)]
        constant = len(arguments) == len(node.args) and not (node.kwargs or node.dyn_args or node.dyn_kwargs)
        known = constant and isinstance(method, nodes.Getattr) and method.attr in SAFE_STR_METHODS
        subject = _subject(method.node, frame) if known and isinstance(method, nodes.Getattr) else None
        if subject is None or forward_caller or not isinstance(method, nodes.Getattr):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        call = f"{subject.source}.{method.attr}({', '.join(map(repr, arguments))})"
        self._write_either(call, f"{subject.guard}{subject.source}.__class__ is str", super().visit_Call, node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """`a ~ b`."""
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("''.join(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def _visit_key(self, node: nodes.Expr, frame: Frame, general: Callable[..., None]) -> None:
        subject = _subject(node, frame)
        if subject is None or subject.key is None:
            general(node, frame)
        else:
            is_there = f"{subject.holder}.__class__ is dict and {subject.key!r} in {subject.holder}"
            self._write_either(subject.source, is_there, general, node, frame)

    def _write_either(
        self, plain: str, condition: str, general: Callable[..., None], node: nodes.Expr, frame: Frame
    ) -> None:
        """`plain if condition else` what `general` writes for `node`."""
        self.write(f"({plain} if {condition} else ")
        general(node, frame)
        self.write(")")


def _subject(node: nodes.Node | None, frame: Frame) -> _Subject | None:
    if isinstance(node, nodes.Name) and node.ctx == "load":
        variable = frame.symbols.ref(node.name)
        return _Subject("", variable, variable, None)
    if isinstance(node, nodes.Getattr) and node.attr not in DICT_NAMES:
        key: Any = node.attr
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        key = node.arg.value
    else:
        return None
    if type(key) is not str or not isinstance(node.node, nodes.Name) or node.node.name == "loop":
        return None
    holder = frame.symbols.ref(node.node.name)
    return _Subject(f"{holder}.__class__ is dict and {key!r} in {holder} and ", f"{holder}[{key!r}]", holder, key)


def _is_defined(subject: _Subject) -> str:
    there = f"{subject.source} is not missing" if subject.key is None else f"{subject.key!r} in {subject.holder}"
    return f"({there} and not isinstance({subject.source}, Undefined))"


def _arguments(node: nodes.Filter | nodes.Test) -> bool:
    return bool(node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
