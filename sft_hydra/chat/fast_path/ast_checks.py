"""Static checks of a template's syntax tree.

`string_constants`: the texts it searches for in contents. `is_content_independent`: whether a node's output depends on a
content only by printing and trimming it, by its presence, and by such texts. `blocks_are_printed`, `leaves_tools_to_blocks`:
whether tools and calls are printed only by blocks (tool_blocks.py).
"""

from collections.abc import Iterable

from jinja2 import nodes

from sft_hydra.chat.tool_blocks import PREFIX

FILTERS = {"trim", "tojson", "safe", "string", "default", "d", "length", "count", "items", "list", "join", "selectattr"}
MARKS = {"open_mark", "close_mark", "visited"}
METHODS = {"strip", "lstrip", "rstrip", "split", "startswith", "endswith", "items", "keys", "get"}
TOOL_NAMES = {"tools", "tool_calls"}
TESTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "true", "false", "boolean"}


def string_constants(parts: Iterable[nodes.Node]) -> set[str]:
    """Texts that these parts of a template search for or split contents at; a content with one of them may be rendered
    differently."""
    parts = list(parts)
    found: set[str] = set()
    for node in parts:
        if isinstance(node, nodes.Compare):
            for operand in node.ops:
                if operand.op in ("in", "notin"):
                    found |= _constants([node.expr, operand.expr])
                    if not _constants([node.expr]):  # the text is in a variable: take all texts that are assigned
                        named = [part for part in parts if isinstance(part, nodes.Assign | nodes.Call)]
                        found |= _constants(named)
        elif isinstance(node, nodes.Filter) or (isinstance(node, nodes.Call) and not isinstance(node.node, nodes.Name)):
            found |= _constants(node.args or [])
    return {text for text in found if text.strip()}


def compared_constants(parts: Iterable[nodes.Node]) -> set[str]:
    """Texts that expressions are compared with."""
    return _constants(node for node in parts if isinstance(node, nodes.Compare))


def is_content_independent(node: nodes.Node) -> bool:
    """Whether a node of an executed branch uses contents only as the module docstring allows."""
    if isinstance(node, nodes.Filter):
        return node.name in FILTERS or node.name in MARKS or _is_block(node)
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
    """Whether an index is like `messages[0]`, `x['content']` or `content.split(...)[-1]`; not a slice of a text."""
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
    if counted:  # comparison with 0 is allowed; other counts only of messages
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
    """String constants in expressions, including the expressions themselves."""
    found: set[str] = set()
    for part in parts:
        constants = [part] if isinstance(part, nodes.Const) else part.find_all(nodes.Const)
        found |= {const.value for const in constants if isinstance(const.value, str)}
    return found


def blocks_are_printed(tree: nodes.Template) -> bool:
    """Whether every block's text is printed directly, i.e. no block is inside a macro, assignment, filter or call block."""
    catching = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.CallBlock)
    return not any(_is_block(node) for catcher in tree.find_all(catching) for node in catcher.find_all(nodes.Filter))


def leaves_tools_to_blocks(parts: Iterable[nodes.Node]) -> bool:
    """Whether these parts of a template print tools and calls only by blocks, and otherwise only test whether there are any."""
    return all(
        not _means_tools(child) or _is_test(node, child) or _is_block(node)
        for node in parts
        for child in node.iter_child_nodes()
    )


def _means_tools(node: nodes.Node) -> bool:
    """Whether an expression is, or may evaluate to, the tools or a message's calls."""
    if isinstance(node, nodes.And | nodes.Or):
        return _means_tools(node.left) or _means_tools(node.right)
    if isinstance(node, nodes.Name):
        return node.name in TOOL_NAMES
    if isinstance(node, nodes.Getattr):
        return node.attr in TOOL_NAMES
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value in TOOL_NAMES
    return isinstance(node, nodes.Call) and any(
        isinstance(argument, nodes.Const) and argument.value in TOOL_NAMES for argument in node.args
    )


def _is_test(node: nodes.Node, child: nodes.Node) -> bool:
    """Whether `node` only tests whether `child` is empty; counts are checked by `is_content_independent`."""
    if isinstance(node, nodes.If | nodes.CondExpr):
        return child is node.test
    counts = isinstance(node, nodes.Filter) and node.name in ("length", "count")
    return counts or isinstance(node, nodes.Test | nodes.And | nodes.Or | nodes.Not)


def _is_block(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Filter) and node.name.startswith(PREFIX)
