"""Templates with the traits that break in silence: each sequence is held to what transformers renders for a server."""

from copy import deepcopy
from typing import Any

import pytest
from support.chats import TOOL, assistant, call, conversation, result, system, user

from sft_hydra.chat.checks import EVERY, LearnedWrongError
from sft_hydra.chat.render import Renderer
from sft_hydra.chat.template_traits import end_of_turn_texts
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.errors import RowError

LOOP = "{%- for m in messages %}"
PROMPT = "{%- if add_generation_prompt %}{{ '<|bot|>' }}{%- endif %}"
TOOLS = "{%- if tools %}{{ '<|tools|>' ~ (tools | tojson) }}{%- endif %}"
PLAIN = (
    LOOP
    + "{{ '<|' ~ ('bot' if m.role == 'assistant' else m.role) ~ '|>' ~ m.content ~ '<|end|>' }}{%- endfor %}"
    + PROMPT
)
TEMPLATES = {
    "plain": PLAIN,
    "system in the last user turn": "{%- if messages[0].role == 'system' %}{%- set sys = messages[0].content %}"
    "{%- set messages = messages[1:] %}{%- endif %}" + LOOP + "{%- if m.role == 'user' %}"
    "{%- if loop.last and sys is defined %}{{ '[INST]' ~ sys ~ '\\n\\n' ~ m.content ~ '[/INST]' }}"
    "{%- else %}{{ '[INST]' ~ m.content ~ '[/INST]' }}{%- endif %}"
    "{%- else %}{{ m.content ~ eos_token }}{%- endif %}{%- endfor %}",
    "the next opener ends a turn": LOOP
    + "{{ '<|' ~ ('bot' if m.role == 'assistant' else m.role) ~ '|>\\n' ~ m.content }}{%- endfor %}"
    + PROMPT.replace("<|bot|>", "<|bot|>\\n"),
    "the end comes with the next turn": "{%- set ns = namespace(open=false) %}"
    + LOOP
    + "{%- if ns.open %}{{ '\\n<|stop|>' }}{%- endif %}{%- set ns.open = m.role == 'assistant' %}"
    "{{ '<|' ~ ('bot' if m.role == 'assistant' else m.role) ~ '|>' ~ m.content }}{%- endfor %}" + PROMPT,
    "prompt inside the loop": LOOP
    + "{{ '<|' ~ ('bot' if m.role == 'assistant' else m.role) ~ '|>' ~ m.content ~ '<|end|>' }}"
    "{%- if loop.last and add_generation_prompt %}{{ '<|bot|>' }}{%- endif %}{%- endfor %}",
    "prompt printed always": LOOP
    + "{{ '<|' ~ ('bot' if m.role == 'assistant' else m.role) ~ '|>' ~ m.content ~ '<|end|>' }}{%- endfor %}"
    "{{ '<|bot|>' }}{%- if not enable_thinking %}{{ '<|think_start|><|think_end|>' }}{%- endif %}",
    "no mode stands in the text": LOOP
    + "{{ '<|' ~ ('bot' if m.role == 'assistant' else m.role) ~ '|>' ~ (m.content | trim) ~ '<|end|>' }}{%- endfor %}"
    + PROMPT.replace(
        "{%- endif %}", "{%- if not enable_thinking %}{{ '<|chan>think<chan|>' }}{%- endif %}{%- endif %}"
    ),
    "its own eos only at the very end": LOOP
    + "{{ '<|' ~ ('bot' if m.role == 'assistant' else m.role) ~ '|>' ~ m.content }}{%- endfor %}"
    + "{%- if add_generation_prompt %}{{ '<|bot|>' }}{%- else %}{{ eos_token }}{%- endif %}",
}
ENDS = {
    "system in the last user turn": "</s>",
    "the next opener ends a turn": "<|user|>",
    "the end comes with the next turn": "\n<|stop|>",
    "its own eos only at the very end": "<|user|>",
}
TALKS: dict[str, list[dict[str, Any]]] = {
    "one": [user("Hi?"), assistant("Hello.")],
    "system": [system("Be kind."), user("Hi?"), assistant("Hello.")],
    "more": [system("Be kind."), user("Hi?"), assistant("Hello."), user("Well?"), assistant("Very.")],
    "spaces": [user(" Hi?\n"), assistant("Hello.\n\n"), user("Well?"), assistant(" Very.")],
}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(template: str, messages: list[Any], tools: Any = None, **more: Any) -> str:
    """What transformers renders."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[deepcopy(messages)], tools=tools, chat_template=template, **{**VARIABLES, **more}
    )
    return texts[0]


def trained(sequences: list[RenderedSequence]) -> list[tuple[str, str]]:
    """(text before it, trained text) of every trained chunk."""
    found = []
    for sequence in sequences:
        before = ""
        for chunk, flag in zip(sequence.chunks, sequence.trained, strict=True):
            if flag:
                found.append((before, chunk))
            before += chunk
    return found


@pytest.mark.parametrize("talk", sorted(TALKS))
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_turn_stands_behind_its_prompt_and_closes(name: str, talk: str) -> None:
    template, messages = TEMPLATES[name], TALKS[talk]
    renderer = Renderer(template, dict(VARIABLES))
    spans = trained(renderer.sequences(conversation({"messages": messages})))
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(spans) == len(answers)
    for index, (before, text) in zip(answers, spans, strict=True):
        serving = {"add_generation_prompt": True, "enable_thinking": False, "thinking": False}
        assert before == theirs(template, messages[:index], **serving)
        words, _, closing = text.partition(messages[index]["content"].strip())
        assert not words.strip()
        assert closing.strip() == ENDS.get(name, "<|end|>").strip()


def test_an_opener_that_ends_turns_ends_generation_too() -> None:
    renderer = Renderer(TEMPLATES["the next opener ends a turn"], dict(VARIABLES), tokens=["<|user|>", "<|bot|>"])
    assert end_of_turn_texts(renderer.traits, ["<|user|>", "<|bot|>"]) == ["<|user|>"]


def test_a_header_that_no_prompt_prints_is_not_trained() -> None:
    template = PLAIN.removesuffix(PROMPT)
    (sequence,) = Renderer(template, dict(VARIABLES)).sequences(conversation({"messages": TALKS["one"]}))
    assert sequence.chunks == ["<|user|>Hi?<|end|><|bot|>", "Hello.<|end|>"]
    assert sequence.bare_headers == 1


def test_a_text_without_any_end_is_counted() -> None:
    template = (
        LOOP + "{{ m.role ~ ': ' ~ m.content ~ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (sequence,) = Renderer(template).sequences(conversation({"messages": TALKS["one"]}))
    assert sequence.open_ends == 1


CALLS = (
    TOOLS
    + LOOP
    + "{{ '<|' ~ m.role ~ '|>' ~ (m.content or '') }}{%- if m.tool_calls %}CALLS{%- endif %}{{ '<|end|>' }}"
    "{%- endfor %}" + PROMPT.replace("bot", "assistant")
)
EACH = "{%- for c in m.tool_calls %}{{ '<|call|>' ~ c.function.name ~ (c.function.arguments | tojson) }}{%- endfor %}"
FIRST = "{{ '<|call|>' ~ m.tool_calls[0].function.name ~ (m.tool_calls[0].function.arguments | tojson) }}"


def parallel() -> dict[str, Any]:
    two = call()
    two["tool_calls"] += call(id="call_2", place="Rome")["tool_calls"]
    messages = [user("Rain?"), two, result("sun"), result("rain", "call_2"), assistant("Only in Rome.")]
    return {"messages": messages, "tools": [TOOL]}


def test_a_template_that_drops_the_second_parallel_call_rejects_the_row() -> None:
    assert Renderer(CALLS.replace("CALLS", EACH)).sequences(conversation(parallel()))
    with pytest.raises(RowError, match="of a tool call") as caught:
        Renderer(CALLS.replace("CALLS", FIRST)).sequences(conversation(parallel()))
    assert caught.value.reason == "template_drops"


def test_equal_calls_are_not_taken_for_each_other() -> None:
    row = parallel()
    row["messages"][1]["tool_calls"][1]["function"] = row["messages"][1]["tool_calls"][0]["function"]
    with pytest.raises(RowError, match="of a tool call"):
        Renderer(CALLS.replace("CALLS", FIRST)).sequences(conversation(row))


def test_tool_definitions_that_are_not_printed_reject_the_row() -> None:
    with pytest.raises(RowError, match="of a tool") as caught:
        Renderer(PLAIN).sequences(conversation({"messages": TALKS["one"], "tools": [TOOL]}))
    assert caught.value.reason == "template_drops"


def test_an_argument_that_is_not_printed_rejects_the_row_whatever_rows_came_before() -> None:
    some = "{%- for k, v in c.function.arguments.items() if k != 'hour' %}{{ k ~ '=' ~ v }}{%- endfor %}"
    template = CALLS.replace("CALLS", EACH).replace("(c.function.arguments | tojson) }}", "'' }}" + some)
    renderer = Renderer(template)

    def talk(**arguments: str) -> Any:
        messages = [user("Rain?"), call(**arguments), result("sun"), assistant("No.")]
        return conversation({"messages": messages, "tools": [TOOL]})

    for number in range(12):
        assert renderer.sequences(talk(place=f"city {number}"))
        late = talk(place=f"city {number}", hour="noon")
        with pytest.raises(RowError, match="of a tool call"):
            renderer.sequences(late)


def test_a_developer_speaks_as_the_system_where_there_is_no_developer() -> None:
    messages = [{"role": "developer", "content": "Be kind."}, *TALKS["one"]]
    only_three = LOOP + "{%- if m.role in ('user', 'system') %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}"
    template = (
        only_three + "{%- elif m.role == 'assistant' %}{{ '<|bot|>' ~ m.content ~ '<|end|>' }}{%- endif %}{%- endfor %}"
    )
    (sequence,) = Renderer(template + PROMPT).sequences(conversation({"messages": messages}))
    assert sequence.text.startswith("<|system|>Be kind.<|end|><|user|>")
    (sequence,) = Renderer(PLAIN).sequences(conversation({"messages": messages}))
    assert sequence.text.startswith("<|developer|>Be kind.<|end|><|user|>")


def test_trimmed_and_escaped_contents_are_whole() -> None:
    template = PLAIN.replace("~ m.content ~", "~ (m.content | trim | tojson) ~")
    messages = [user(' Say "hé"\n twice. '), assistant('"hé"\n"hé"')]
    assert Renderer(template).sequences(conversation({"messages": messages}))


THINKS = (
    TOOLS + LOOP + "{{ '<|' ~ m.role ~ '|>' }}{%- if m.role == 'assistant' and (loop.last or m.reasoning_content) %}"
    "{{ '<think>\\n' ~ (m.reasoning_content or '') ~ '\\n</think>\\n\\n' }}{%- endif %}{{ m.content or '' }}"
    "{%- if m.tool_calls %}" + EACH + "{%- endif %}{{ '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- if enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)


@pytest.mark.parametrize("thoughtful", ["", "0", "1", "01"])
def test_modes_do_not_mix_in_one_sequence(thoughtful: str) -> None:
    messages = [user("Rain?"), call(), result("sun"), assistant("No rain.")]
    for number, index in enumerate((1, 3)):
        if str(number) in thoughtful:
            messages[index]["reasoning_content"] = f"Thought {number}."
    sequences = Renderer(THINKS).sequences(conversation({"messages": messages, "tools": [TOOL]}))
    found = []
    for sequence in sequences:
        modes = set()
        for before, _ in trained([sequence]):
            for index in (1, 3):
                thinking = "reasoning_content" in messages[index]
                serving = {"add_generation_prompt": True, "enable_thinking": thinking}
                if before == theirs(THINKS, messages[:index], [TOOL], **serving):
                    found.append(index)
                    modes.add(thinking)
        assert len(modes) == 1
    assert sorted(found) == [1, 3]


def test_a_text_beside_an_earlier_call_is_a_shape_of_its_own() -> None:
    beside = "{%- if m.content and not (m.tool_calls and messages[-1].role == 'assistant' and not loop.last) %}"
    template = CALLS.replace("CALLS", EACH).replace(
        "{{ '<|' ~ m.role ~ '|>' ~ (m.content or '') }}",
        ("{{ '<|' ~ m.role ~ '|>' }}" + beside + "{{ m.content }}{%- endif %}"),
    )
    renderer = Renderer(template)
    for text in ("", "Let me see."):
        messages = [user("Rain?"), call(text), result("sun"), assistant("No rain.")]
        spans = trained(renderer.sequences(conversation({"messages": messages, "tools": [TOOL]})))
        served = [theirs(template, messages[:index], [TOOL], add_generation_prompt=True) for index in (1, 3)]
        assert [before for before, _ in spans] == served


def test_a_template_that_wants_tools_is_probed_with_tools() -> None:
    template = "{%- if not tools %}{{ raise_exception('needs tools') }}{%- endif %}" + CALLS.replace("CALLS", EACH)
    renderer = Renderer(template)
    assert renderer.sequences(conversation(parallel()))
    with pytest.raises(RowError, match="needs tools"):
        renderer.sequences(conversation({"messages": TALKS["one"]}))


def test_rows_of_a_trusted_shape_are_held_to_serving_now_and_then() -> None:
    template = PLAIN.replace("{%- for m", "{%- if messages[-1].content | length > 30 %}{{ '!' }}{%- endif %}{%- for m")
    renderer = Renderer(template)
    renderer.render_cache = None
    for _ in range(3):
        renderer.sequences(conversation({"messages": TALKS["more"]}))
    long = [user("Hi?"), assistant("Hello."), user("Well?"), assistant("A long answer, longer than thirty letters.")]
    rows = [conversation({"messages": messages}) for messages in (TALKS["more"][1:], long)] * 2 * EVERY
    with pytest.raises(LearnedWrongError):
        [renderer.sequences(row) for row in rows]
    renderer.trust_nothing()
    spans = trained(renderer.sequences(conversation({"messages": long})))
    assert [before for before, _ in spans] == [
        theirs(template, long[:index], add_generation_prompt=True) for index in (1, 3)
    ]
