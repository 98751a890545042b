"""Rendering with template variables of a row: `RowRenderer.sequences` passes a row's `chat_template_kwargs` to the template.

Invariant: a row is rendered in the thinking mode that it sets; keys that the template does not read are reported by `unread`.
A renderer is kept for each set of switches (`enable_thinking=false`), because they change generation prompts; texts and lists
are passed for one row only.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from jinja2 import nodes

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation

MODES = ("enable_thinking", "thinking")
KEPT = 32  # renderers; each has probed the template
OF_TOOLS = re.compile(r"tool|call|func|param|arg|propert|schema|json", re.IGNORECASE)
SWITCH_CHARS = 16  # a longer text is not a switch

Kwargs = dict[str, Any]


class RowRenderer:
    """Renders any conversation. `make(variables)`: a renderer whose template gets these additional variables."""

    def __init__(self, make: Callable[[Kwargs], Renderer]) -> None:
        self.make = make
        self.plain = make({})
        both = [renderer.template for renderer in (self.plain, self.plain.with_tools) if renderer and renderer.template]
        trees = [template.environment.parse(template.source) for template in both]
        self.names = frozenset[str]().union(*map(names_read, trees))
        self.message_names = frozenset[str]().union(*map(message_names_read, trees))
        self.known: OrderedDict[str, Renderer] = OrderedDict()
        self.careful = False
        self.expected = 0
        self.reads: dict[str, bool] = {}  # key -> whether it is read, for rows without template_kwargs

    def sequences(self, conversation: Conversation) -> list[RenderedSequence]:
        """Training sequences, at least one. Raises RowError and LearnedWrongError as Renderer does."""
        if not conversation.template_kwargs:
            return self.plain.sequences(conversation)
        kwargs = self.used(conversation)
        if lost := [key for key in _texts(conversation) if key not in kwargs]:
            raise RowError(
                "template_drops", f"chat_template_kwargs.{lost[0]}: the chat template does not read this variable"
            )
        switches = {key: value for key, value in kwargs.items() if _is_switch(value)}
        more = {key: value for key, value in kwargs.items() if key not in switches}
        renderer = self._of(switches).chosen(conversation)
        if any(switches.get(key) is False for key in MODES):
            conversation = _without_reasoning(conversation)
        if not more or renderer.template is None:
            return renderer.sequences(conversation)
        template = renderer.template
        before = template.variables
        template.variables = _joined(before, more)
        try:
            return renderer.by_template(conversation, trusted=False)
        finally:
            template.variables = before

    def used(self, conversation: Conversation) -> Kwargs:
        """The row's variables that the template reads. Both names of the thinking mode are set if either is."""
        row = conversation.template_kwargs
        kwargs = {key: value for key, value in row.items() if key in self.names}
        mode = next((row[key] for key in MODES if isinstance(row.get(key), bool)), None)
        if mode is not None and not self.names.isdisjoint(MODES):
            kwargs |= dict.fromkeys(MODES, mode)
        return kwargs

    def unread(self, conversation: Conversation) -> set[str]:
        """Keys of the row that neither this package nor the template reads."""
        if not conversation.template_kwargs:
            return {key for key in conversation.unread if not self.is_read(key)}
        used = self.used(conversation)
        found = {key for key in conversation.unread if not self._is_read(key, used)}
        row = conversation.meta.get("chat_template_kwargs") or ()
        if isinstance(row, dict):
            found |= {f"chat_template_kwargs.{key}" for key in row.keys() - used.keys() - {"tools"}}
        if any(used.get(key) is False for key in MODES) and any(
            "reasoning_content" in m for m in conversation.messages
        ):
            found.add("messages.reasoning_content (the row says enable_thinking=false)")
        return found

    def is_read(self, key: str) -> bool:
        """Whether the template reads this key of rows without `template_kwargs`."""
        known = self.reads.get(key)
        if known is None:
            known = self.reads[key] = self._is_read(key, {})
        return known

    def _is_read(self, key: str, used: Kwargs) -> bool:
        group, _, name = key.partition(".")
        if group == "messages" and name:
            return name in self.message_names
        return name in self.names if group == "tool_calls" and name else key in used

    def expect(self, rows: int) -> None:
        """Announce the number of conversations to render, for the render caches."""
        self.expected = rows
        for renderer in (self.plain, *self.known.values()):
            renderer.expect(rows)

    def forget(self) -> None:
        """Clear the cached check results, as before the first shard."""
        for renderer in (self.plain, *self.known.values()):
            renderer.forget()

    def trust_nothing(self) -> None:
        """Render and check every row from now on."""
        self.careful = True
        for renderer in (self.plain, *self.known.values()):
            renderer.trust_nothing()

    def _of(self, switches: Kwargs) -> Renderer:
        if not switches:
            return self.plain
        key = repr(sorted(switches.items()))
        if key not in self.known:
            if len(self.known) >= KEPT:
                self.known.popitem(last=False)
            self.known[key] = self.make(switches)
            self.known[key].expect(self.expected)
            if self.careful:
                self.known[key].trust_nothing()
        self.known.move_to_end(key)
        return self.known[key]


def renderers_of(make: Callable[[Kwargs], Renderer], variables: Kwargs) -> Callable[[Kwargs], Renderer]:
    """`make` with `variables` and further ones, which take precedence."""
    return lambda more: make(_joined(variables, more) if more else variables)


def names_read(tree: nodes.Template) -> frozenset[str]:
    """Names of variables, attributes and keys in a parsed template."""
    found = {node.name for node in tree.find_all(nodes.Name)} | {node.attr for node in tree.find_all(nodes.Getattr)}
    constants = {node.value for node in tree.find_all(nodes.Const)}
    return frozenset(found | {value for value in constants if isinstance(value, str)})


def message_names_read(tree: nodes.Template) -> frozenset[str]:
    """Names that a template reads, except those that it reads of calls, tools and their parameters only: `tool_call.name` does
    not print the name of a user."""
    of_tools: set[str] = set()
    others: set[str] = set()
    read = [(node.node, node.attr) for node in tree.find_all(nodes.Getattr)]
    read += [(node.node, _key(node)) for node in tree.find_all(nodes.Getitem)]
    for owner, name in read:
        (of_tools if OF_TOOLS.search(_identifier(owner)) else others).add(name)
    return (names_read(tree) - of_tools) | others


def _identifier(node: nodes.Expr) -> str:
    """The last name of an expression: `call` of `message.call`, `calls` of `calls[0]`."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem):
        return _key(node) or _identifier(node.node)
    return node.name if isinstance(node, nodes.Name) else ""


def _key(node: nodes.Getitem) -> str:
    key = node.arg.value if isinstance(node.arg, nodes.Const) else ""
    return key if isinstance(key, str) else ""


def _texts(conversation: Conversation) -> list[str]:
    """Keys of `chat_template_kwargs` with content for the model: texts, tools, documents."""
    items = conversation.template_kwargs.items()
    return [key for key, value in items if key not in conversation.meta and value and not _is_switch(value)]


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (
        isinstance(value, str) and len(value) <= SWITCH_CHARS and value.isalnum()
    )


def _joined(variables: Kwargs, more: Kwargs) -> Kwargs:
    return {**variables, **more, "chat_template_kwargs": {**variables.get("chat_template_kwargs", {}), **more}}


def _without_reasoning(talk: Conversation) -> Conversation:
    messages = [{key: value for key, value in m.items() if key != "reasoning_content"} for m in talk.messages]
    return Conversation(messages, talk.tools, talk.origin, talk.source, talk.meta, talk.template_kwargs)
