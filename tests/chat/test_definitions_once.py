"""Tool definitions are rendered once per list (`ChatTemplate.use_blocks`); the text is the template's own."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
from support.chats import TOOL, assistant, call, result, user

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.template import ChatTemplate
from sft_hydra.records import Message

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
OTHER = {"type": "function", "function": {**TOOL["function"], "name": "other"}}
LISTED = (
    "{% for t in tools or [] %}<t>{{ t | tojson }}</t>{% endfor %}"
    "{% for t in tools %}<t>{{ t.function.name }}</t>{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def plain(template: ChatTemplate, messages: list[Message], tools: Sequence[object]) -> str:
    return template.plain.render(template._context(messages, tools, False, False))


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_prompts_are_those_of_the_template(file: Path) -> None:
    renderer = Renderer(file.read_text(), {"bos_token": "<s>", "eos_token": "</s>"}, now=datetime(2026, 1, 2))
    template = renderer.template
    assert template is not None
    talk = [user("Rain?"), call(), result("sun"), assistant("No.")]
    for tools in ([TOOL], [TOOL, OTHER], [TOOL], [OTHER]):
        messages = renderer._shape(talk) if renderer.traits.renders_calls else [user("Rain?"), assistant("No.")]
        try:
            expected = plain(template, messages, tools)
        except Exception:  # the template refuses the conversation
            continue
        for _ in range(2):
            assert template.render(messages, tools, False) == expected


def test_definitions_are_rendered_once_and_a_wrong_block_is_given_up() -> None:
    template = Renderer(LISTED, {}).template
    assert template is not None
    assert template.marking is not None
    messages: list[Message] = [user("Hi"), assistant("Hello")]
    assert template.unmarked is not template.plain
    assert template.render(messages, [TOOL], False) == plain(template, messages, [TOOL])
    for block in template.blocks[template.marking].values():
        block.render = lambda values: "something else"
    assert template.render(messages, [TOOL], False) == plain(template, messages, [TOOL])  # known already
    assert template.render(messages, [OTHER], False) == plain(template, messages, [OTHER])
    assert template.unmarked is template.plain
