"""Tool definitions are rendered once per tool, not once per row: rows of a data set share a few tools.

A loop over `tools` whose body needs nothing but its variable and the template's own macros prints a function of the tool;
its body becomes a macro that is called for every new tool and remembered for the others. Any other loop stays as it is.
"""

from typing import Any

import orjson
from jinja2 import Environment, Template, meta, nodes

REMEMBERED = 50_000
PURE_GLOBALS = {"raise_exception"}


def remember_tool_blocks(environment: Environment, tree: nodes.Template) -> None:
    """Edit the syntax tree of a template in place."""
    macros = [statement for statement in tree.body if isinstance(statement, nodes.Macro)]
    for loop in list(tree.find_all(nodes.For)):
        if not (
            isinstance(loop.target, nodes.Name) and isinstance(loop.iter, nodes.Name) and loop.iter.name == "tools"
        ):
            continue
        if loop.test is None and not loop.recursive and _is_pure(environment, loop, macros):
            name = f"tool_block_{loop.lineno}"
            environment.filters[name] = _ToolBlock(environment, loop.target.name, macros, loop.body)
            value = nodes.Name(loop.target.name, "load")
            loop.body = [nodes.Output([nodes.Filter(value, name, [], [], None, None)], lineno=loop.lineno)]


def _is_pure(environment: Environment, loop: nodes.For, macros: list[nodes.Macro]) -> bool:
    assert isinstance(loop.target, nodes.Name)
    body = nodes.Template([*macros, *loop.body], lineno=1)
    body.set_environment(environment)
    needs = meta.find_undeclared_variables(body) - {loop.target.name} - PURE_GLOBALS
    return not needs and not any(True for _ in body.find_all((nodes.NSRef, nodes.Break, nodes.Continue)))


class _ToolBlock:
    """The filter that prints a tool."""

    def __init__(
        self, environment: Environment, target: str, macros: list[nodes.Macro], body: list[nodes.Node]
    ) -> None:
        macro = nodes.Macro("block", [nodes.Name(target, "param")], [], body, lineno=1)
        tree = nodes.Template([*macros, macro], lineno=1)
        tree.set_environment(environment)
        template = Template.from_code(environment, environment.compile(tree), environment.make_globals(None))
        self.render = template.module.block  # type: ignore[attr-defined]
        self.known: dict[bytes, str] = {}

    def __call__(self, tool: Any) -> str:
        try:
            key = orjson.dumps(tool)
        except TypeError:  # not plain JSON
            return str(self.render(tool))
        text = self.known.get(key)
        if text is None:
            if len(self.known) >= REMEMBERED:
                self.known.clear()
            text = self.known[key] = str(self.render(tool))
        return text
