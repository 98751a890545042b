"""Traits of a chat template: `TemplateTraits`, determined by template_probe.py."""

from dataclasses import dataclass, field

from sft_hydra.chat.ends import Ends


@dataclass(slots=True)
class TemplateTraits:
    """The message format that a template reads, and what it prints around messages."""

    content_parts: bool = False  # reads [{"type": "text", "text": ...}] instead of a string
    text_arguments: bool = False  # reads a tool call's arguments as a JSON string
    reasoning_field: str | None = None  # the key it reads reasoning from; "" = inline in the content; None = not at all
    call_reasoning_field: str | None = None  # the same for reasoning before tool calls
    opens_inline: bool = False  # prints <think> itself before a content with inline reasoning
    renders_calls: bool = False  # prints tool calls
    keeps_reasoning: bool = False  # can keep the reasoning of earlier turns
    marked: bool = False  # turns are located by marks (template.py), else by rendering prefixes
    renders_results: bool = False  # prints tool results
    needs_ids: bool = False  # raises an error for calls without ids, or with ids of some other form
    long_ids: bool = False  # requires call ids of nine letters and digits
    opens_reasoning: bool = False  # its prompt opens <think>, but reasoning is not printed
    empty_as_null: bool = False  # needs null instead of an empty text beside tool calls
    mode_free: bool = True  # the text before a turn does not depend on the thinking mode
    modes_mix: bool = False  # prompts differ by mode, so that turns of both modes fit in one text
    stable: bool = True  # a turn without reasoning is rendered the same with later user turns
    stable_calls: bool = True  # the same for turns with tool calls
    stable_steps: bool = True  # the text before a second step of a user turn is rendered as served
    prompts: dict[tuple[bool, str], str] = field(default_factory=dict)  # (thinking, role before) -> generation prompt
    headers: set[str] = field(default_factory=set)  # texts between a turn's start and its first word
    call_stop: str = ""  # what a tool-call turn prints only if it is the last turn
    ends: Ends = field(default_factory=Ends)  # end-of-turn tokens
    needs_tools: bool = False  # raises an error for conversations without tools
    developer_as_system: bool = False  # leaves out developer messages, so they become system messages
    trails: bool = False  # prints text after the last turn of any role, which is not part of the turn

    @property
    def reshapes(self) -> bool:
        """Whether messages must be changed for this template."""
        wanted = self.content_parts or self.text_arguments or self.empty_as_null or self.needs_ids
        wanted = wanted or self.developer_as_system
        return wanted or {self.reasoning_field, self.call_reasoning_field} != {"reasoning_content"}

    def drops_reasoning(self, calls: bool) -> bool:
        """Whether reasoning of a turn with (`calls`) or without tool calls is not rendered."""
        return (self.call_reasoning_field if calls else self.reasoning_field) is None and not self.opens_reasoning


def end_of_turn_texts(traits: TemplateTraits, tokens: list[str]) -> list[str]:
    """Those of the control tokens `tokens` that end an assistant turn of a template with these traits."""
    answer, call = ([text for text in end.tokens if text in tokens] for end in (traits.ends.answer, traits.ends.call))
    return list(dict.fromkeys([*answer[:1], *call[-1:]]))  # a call may close inner tags first


def end_of_turn_strings(traits: TemplateTraits, tokens: list[str]) -> list[str]:
    """Texts that end an assistant turn but are not in `tokens`, where no token ends it: servers need them as stop strings."""
    ends = [traits.ends.answer, *([traits.ends.call] if traits.renders_calls else [])]
    found = [end.tokens[-1] for end in ends if end.tokens and not any(text in tokens for text in end.tokens)]
    return list(dict.fromkeys(found))
