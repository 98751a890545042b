"""What is known of a chat template: `TemplateTraits`, learned by probe.py, used by whoever shapes, renders and locates turns."""

from dataclasses import dataclass, field

from sft_hydra.chat.ends import Ends


@dataclass(slots=True)
class TemplateTraits:
    """How a template wants messages, and what it prints around them."""

    content_parts: bool = False  # wants [{"type": "text", "text": ...}] instead of a string
    text_arguments: bool = False  # wants a tool call's arguments as a JSON string
    reasoning_field: str | None = None  # the key it reads reasoning from; "" = inline in the content; None = not at all
    renders_calls: bool = False
    keeps_reasoning: bool = False  # earlier reasoning stays when asked to
    marked: bool = False
    renders_results: bool = False
    renders_call_text: bool = True  # prints the text beside a tool call
    renders_call_reasoning: bool = True  # prints the reasoning before a tool call
    long_ids: bool = False  # insists on call ids of nine letters and digits
    opens_reasoning: bool = False  # its prompt opens <think>, but it prints no reasoning
    empty_as_null: bool = False  # wants null, not an empty text, beside tool calls
    mode_free: bool = True  # what stands before a turn does not depend on the thinking mode
    modes_mix: bool = False  # its prompts tell the modes apart, so that turns of both may stand in one text
    stable: bool = True  # a turn without reasoning reads the same once later user turns exist
    stable_calls: bool = True  # the same for turns with tool calls
    stable_steps: bool = True  # what is before a second step of a user turn reads as it was served
    prompts: dict[tuple[bool, str], str] = field(default_factory=dict)  # (thinking, role before) -> generation prompt
    headers: set[str] = field(default_factory=set)  # texts seen between a turn's start and its first word
    call_stop: str = ""  # what a call's turn prints only when it is the last one
    closings: list[str] = field(default_factory=list)  # texts after a turn's last word
    ends: Ends = field(default_factory=Ends)
    needs_tools: bool = False  # raises an error for conversations without tools
    developer_as_system: bool = False  # leaves out what a developer says, not what a system message says
    trails: bool = False  # what it prints after the last turn, whoever speaks in it, is no part of the turn

    @property
    def reshapes(self) -> bool:
        """Whether messages must be changed for this template at all."""
        wanted = self.content_parts or self.text_arguments or self.empty_as_null or self.long_ids
        wanted = wanted or self.developer_as_system
        return wanted or self.reasoning_field != "reasoning_content"
