"""What a template does to contents, read from its syntax tree: `literals` (texts it looks for) and `is_content_independent` (an
expression whose result depends on a content only by printing and trimming it, by such texts, and by its being there).
What it does to tools and calls: `blocks_are_printed` and `leaves_tools_to_blocks`.
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


def compared_constants(parts: Iterable[nodes.Node]) -> set[str]:
    """Texts that something is equal to or not."""
    return _constants(node for node in parts if isinstance(node, nodes.Compare))


def is_content_independent(node: nodes.Node) -> bool:
    """True for a node of an executed part that treats contents as the docstring above says."""
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


def blocks_are_printed(tree: nodes.Template) -> bool:
    """True if no block of tools or calls (tool_blocks.py) lies where its text is caught, so that all of it is printed."""
    catching = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.CallBlock)
    return not any(_is_block(node) for catcher in tree.find_all(catching) for node in catcher.find_all(nodes.Filter))


def leaves_tools_to_blocks(parts: Iterable[nodes.Node]) -> bool:
    """True if these parts of a template print tools and calls by blocks alone, and else look only whether there are any."""
    return all(
        not _means_tools(child) or _is_test(node, child) or _is_block(node)
        for node in parts
        for child in node.iter_child_nodes()
    )


def _means_tools(node: nodes.Node) -> bool:
    """An expression for the tools or for a message's calls, or one that may give these."""
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
    """Whether `node` asks of `child` only if there is something; what is counted is looked at by `is_content_independent`."""
    if isinstance(node, nodes.If | nodes.CondExpr):
        return child is node.test
    counts = isinstance(node, nodes.Filter) and node.name in ("length", "count")
    return counts or isinstance(node, nodes.Test | nodes.And | nodes.Or | nodes.Not)


def _is_block(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Filter) and node.name.startswith(PREFIX)
