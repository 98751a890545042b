"""Extracts loops over tool definitions and tool calls from a template, as cached filters.

A loop whose body uses only its variable and the template's macros prints a function of its list. It becomes a filter, which is
faster; definitions are rendered once per list, not per row, because rows of a data set share them. Other loops are unchanged.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import orjson
from jinja2 import Environment, Template, meta, nodes

from sft_hydra.chat.whole import call_texts, lost, tool_texts

REMEMBERED = 10_000  # cached texts per block
PURE_GLOBALS = {"raise_exception"}
PREFIX = "block_of_"


class Block:
    """The filter that replaces a loop: list -> text. `stand_in`, if set, is called instead."""

    def __init__(self, environment: Environment, loop: nodes.For, macros: list[nodes.Macro]) -> None:
        self.remembers = _kind(loop) == "tools"
        again = nodes.For(loop.target, nodes.Name("values", "load"), loop.body, [], None, False, lineno=1)
        macro = nodes.Macro("block", [nodes.Name("values", "param")], [], [again], lineno=1)
        tree = nodes.Template([*macros, macro], lineno=1)
        tree.set_environment(environment)
        template = Template.from_code(environment, environment.compile(tree), environment.make_globals(None))
        self.render = template.module.block  # type: ignore[attr-defined]
        self.known: dict[bytes, str] = {}
        self.stand_in: Callable[[Block, Any], str] | None = None
        self.sound: set[str] = set()  # texts that were checked to contain all of their definitions

    def __call__(self, values: Any) -> str:
        if self.stand_in is not None:
            return self.stand_in(self, values)
        if not self.remembers:
            return str(self.render(values))
        try:
            key = orjson.dumps(values)
        except TypeError:  # an integer of more than 64 bits
            return str(self.render(values))
        text = self.known.get(key)
        if text is None:
            if len(self.known) >= REMEMBERED:
                self.known.clear()
            text = self.known[key] = str(self.render(values))
        return text

    def is_whole(self, values: list[Any], text: str) -> bool:
        """Whether `text` contains all of the definitions or calls `values`."""
        if not self.remembers:
            return lost(call_texts(values), text) is None
        if text not in self.sound and lost(tool_texts(values), text) is None:
            if len(self.sound) >= REMEMBERED:
                self.sound.clear()
            self.sound.add(text)
        return text in self.sound


def take_out_blocks(
    environment: Environment, tree: nodes.Template, known: dict[str, Block], calls: bool = True
) -> None:
    """Replace loops by blocks in a template's syntax tree, in place. The blocks are filters of the environment, named PREFIX and
    a number; `known` has those made before from the same tree and gets the new ones. `calls`: also replace loops over calls."""
    macros = [statement for statement in tree.body if isinstance(statement, nodes.Macro)]
    numbers = count()

    def replace(body: list[nodes.Node]) -> None:
        for index, statement in enumerate(body):
            if isinstance(statement, nodes.For) and _kind(statement) and _is_pure(environment, statement, macros):
                name = f"{PREFIX}{next(numbers)}"
                if name not in known:
                    known[name] = Block(environment, statement, macros)
                environment.filters[name] = known[name]
                if not (calls or known[name].remembers):
                    continue
                printed = nodes.Filter(statement.iter, name, [], [], None, None)
                body[index] = nodes.Output([printed], lineno=statement.lineno)
                continue
            for field in ("body", "else_"):
                if isinstance(getattr(statement, field, None), list):
                    replace(getattr(statement, field))
            for branch in getattr(statement, "elif_", ()):
                replace(branch.body)

    replace(tree.body)


def _kind(loop: nodes.For) -> str | None:
    """`tools` or `tool_calls` if a loop iterates over them, else None."""
    values = loop.iter
    if isinstance(values, nodes.Name):
        name = values.name
    elif isinstance(values, nodes.Getattr):
        name = values.attr
    else:
        name = values.arg.value if isinstance(values, nodes.Getitem) and isinstance(values.arg, nodes.Const) else ""
    return name if name in ("tools", "tool_calls") else None


def _is_pure(environment: Environment, loop: nodes.For, macros: list[nodes.Macro]) -> bool:
    if not isinstance(loop.target, nodes.Name) or loop.test is not None or loop.recursive or loop.else_:
        return False
    body = nodes.Template([*macros, *loop.body], lineno=1)
    body.set_environment(environment)
    needs = meta.find_undeclared_variables(body) - {loop.target.name} - PURE_GLOBALS
    return not needs and not any(True for _ in body.find_all((nodes.NSRef, nodes.Break, nodes.Continue)))
