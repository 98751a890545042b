"""A turn is trained as the model writes it behind the server's prompt: thinking blocks, ids of calls and ends fit that prompt."""

from typing import Any

import pytest
from support.chats import TOOL, assistant, call, conversation, result, user

from sft_hydra.chat.render import Renderer
from sft_hydra.errors import DataError, RowError

THOUGHT = assistant("Four.", reasoning_content="Two and two.")


def template(answer: str, prompt: str) -> str:
    """A template that prints `answer` for a turn of the assistant (message `m`), and `prompt` as generation prompt."""
    return (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
        "{% if m.role == 'assistant' %}"
        + answer
        + "<end>{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )


def calls(ids: str = "") -> str:
    return "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}" + ids + "{% endfor %}"


def trained(source: str, messages: list[dict[str, Any]], tools: bool = False) -> list[tuple[str, str]]:
    """(text before, trained text) of every turn."""
    row = {"messages": messages, "tools": [TOOL] if tools else None}
    found = []
    for sequence in Renderer(source, {}).sequences(conversation(row)):
        before = ""
        for chunk, flag in zip(sequence.chunks, sequence.trained, strict=True):
            found += [(before, chunk)] * flag
            before += chunk
    return found


def test_reasoning_is_refused_behind_a_prompt_that_closes_it() -> None:
    source = template("<bot><think>{{ m.reasoning_content or '' }}</think>{{ m.content }}", "<bot><think></think>")
    assert trained(source, [user("2+2?"), assistant("4.")]) == [("<user>2+2?<bot><think></think>", "4.<end>")]
    with pytest.raises(RowError, match="turn_not_located"):
        trained(source, [user("2+2?"), THOUGHT])


def test_a_closing_tag_that_the_prompt_has_is_not_trained_again() -> None:
    source = template("<bot></think>{{ m.content }}" + calls(), "<bot><think></think>\n\n")
    assert trained(source, [user("2+2?"), assistant("4.")]) == [("<user>2+2?<bot><think></think>\n\n", "4.<end>")]
    ((_, called), (_, answered)) = trained(source, [user("Rain?"), call(), result("sun"), assistant("No.")], True)
    assert called.startswith("<call>")
    assert answered == "No.<end>"


def test_reasoning_inside_the_content_is_opened_once() -> None:
    """By the prompt, if the template prints the tag itself."""
    source = template("<bot><think>\n{{ m.content }}", "<bot><think>\n")
    ((before, text),) = trained(source, [user("2+2?"), THOUGHT])
    assert (before + text).count("<think>") == 1
    assert text == "Two and two.\n</think>\n\nFour.<end>"


def test_reasoning_is_read_from_another_key_beside_calls() -> None:
    answer = (
        "<bot>{% if m.tool_calls %}<plan>{{ m.thinking }}</plan>" + calls() + "{% else %}{{ m.content }}{% endif %}"
    )
    messages = [user("Rain?"), {**call(), "reasoning_content": "I look it up."}, result("sun"), THOUGHT]
    ((_, called), (_, answered)) = trained(template(answer, "<bot>"), messages, True)
    assert called.startswith("<plan>I look it up.</plan><call>")
    assert answered == "<think>\nTwo and two.\n</think>\n\nFour.<end>"


def test_a_turn_whose_end_of_turn_stands_in_its_middle_is_refused() -> None:
    """A server stops there, before the call."""
    source = template("<bot>{{ m.content }}{% if m.content and m.tool_calls %}<end><bot>{% endif %}" + calls(), "<bot>")
    assert len(trained(source, [user("Rain?"), call(), result("sun"), assistant("No.")], True)) == 2
    with pytest.raises(RowError, match="end_of_turn"):
        trained(source, [user("Rain?"), call("I look."), result("sun"), assistant("No.")], True)


def test_a_call_is_trained_as_the_last_turn_shows_it() -> None:
    """Some templates print the ids of calls once results follow, but no model writes its ids."""
    ids = "{% if not last %}{{ c.id }}{% endif %}"
    answer = "{% set last = loop.last %}<bot>{{ m.content }}" + calls(ids)
    ((_, called), (before, _)) = trained(
        template(answer, "<bot>"), [user("Rain?"), call(id="abc123xyz"), result("sun"), assistant("No.")], True
    )
    assert "abc123xyz" not in called
    assert "abc123xyz" in before


@pytest.mark.parametrize(("old", "new"), [("abcDEF789", "abcDEF789"), ("call_1", "call00001")])
def test_ids_are_kept_if_the_template_takes_them(old: str, new: str) -> None:
    answer = "<bot>{{ m.content }}" + calls(
        "{% if c.id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}[{{ c.id }}]"
    )
    messages = [user("Rain?"), call(id=old), result("sun", old), assistant("No.")]
    assert f"[{new}]" in trained(template(answer, "<bot>"), messages, True)[0][1]


def test_calls_are_found_beside_tools_printed_as_python_objects() -> None:
    source = template("<bot>{{ m.content }}" + calls(), "<bot>").replace("t | tojson", "t | string")
    assert len(trained(source, [user("Rain?"), call(), result("sun"), assistant("No.")], True)) == 2


def test_an_opening_turn_is_trained_without_the_text_before_it() -> None:
    """A template that prints nothing at all for an empty conversation has a system text, too, once there is a message."""
    source = template("<bot>{{ m.content }}", "{% if messages %}<bot>{% endif %}")
    source = "{% if messages %}<system>Be kind.{% endif %}" + source
    (sequence,) = Renderer(source, {}).sequences(conversation({"messages": [assistant("Hello!")]}))
    assert sequence.chunks == ["<system>Be kind.<bot>", "Hello!<end>"]
    assert sequence.bare_headers == 1


def test_the_end_of_a_call_is_found_behind_ids_that_only_history_has() -> None:
    """As for answers, the last turn gets the end that the template prints once a message follows."""
    ids = "{% if not last %}, {{ c.id }}{% endif %}"
    answer = "{% set last = loop.last %}<bot>{{ m.content }}" + calls(ids)
    answer += "{% if m.tool_calls %}</calls>{% endif %}{% if not loop.last %}<end>{% endif %}"
    source = template(answer, "<bot>").replace("<end>{% else %}", "{% else %}")
    texts = trained(source, [user("Rain?"), call(), result("sun"), assistant("No.")], True)
    assert [text[-13:] for _, text in texts] == ["}}</calls><end>"[-13:], "No.<end>"]


def test_a_content_that_spells_the_end_of_turn_is_not_its_end() -> None:
    """Where the next role's opener ends turns, the real opener follows."""
    source = template("<bot>{{ m.content }}", "<bot>").replace("<end>{% else %}", "{% else %}")
    texts = trained(source, [user("Hi"), assistant("Write <user>"), user("So?"), assistant("No <user>")])
    assert [text for _, text in texts] == ["Write <user><user>", "No <user><user>"]


def test_reasoning_is_refused_if_the_config_selects_the_mode_without_it() -> None:
    block = "{% if not enable_thinking %}<think></think>{% endif %}"
    thought = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    source = template("<bot>" + block + thought + "{{ m.content }}", "<bot>" + block)
    talk = conversation({"messages": [user("2+2?"), THOUGHT]})
    assert Renderer(source, {}).sequences(talk)
    with pytest.raises(RowError, match="turn_not_located"):
        Renderer(source, {"enable_thinking": False}).sequences(talk)


def test_reasoning_is_closed_once_by_a_template_that_closes_it_before_every_answer() -> None:
    answer = "<bot>{% if thinking %}</think>{% else %}<think></think>{% endif %}{{ m.content.split('</think>')[-1] }}"
    source = template(answer, "<bot><think>{% if not thinking %}</think>{% endif %}")
    ((before, text),) = trained(source, [user("2+2?"), THOUGHT])
    assert before.endswith("<bot><think>")
    assert text == "Two and two.</think>Four.<end>"


def test_reasoning_does_not_follow_an_empty_block_that_the_template_prints() -> None:
    source = template("<bot><think>{{ m.reasoning_content if m.tool_calls }}</think>{{ m.content }}" + calls(), "<bot>")
    assert trained(source, [user("2+2?"), assistant("4.")]) == [("<user>2+2?<bot>", "<think></think>4.<end>")]
    with pytest.raises(RowError, match="does not render reasoning"):
        trained(source, [user("2+2?"), THOUGHT])
    messages = [user("Rain?"), {**call(), "reasoning_content": "I look it up."}, result("sun"), assistant("No.")]
    assert trained(source, messages, True)[0][1].startswith("<think>I look it up.</think><call>")


EMPTY_BLOCK = "<|channel>thought\n<channel|>"


def test_a_turn_that_goes_on_after_a_tool_result_has_no_header() -> None:
    """Its prompt is only an empty reasoning block, which the history does not show."""
    source = (
        "{% set ns = namespace(before='') %}{% for m in messages %}{% if m.role == 'tool' %}<|result>{{ m.content }}<result|>"
        "{% elif m.role == 'assistant' %}{% if ns.before != 'tool' %}<|turn>model\n{% endif %}{{ m.content }}"
        + calls()
        + "<turn|>\n"
        "{% else %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endif %}{% set ns.before = m.role %}{% endfor %}"
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
        "{% if add_generation_prompt %}{% if ns.before != 'tool' %}<|turn>model\n{% endif %}"
        + EMPTY_BLOCK
        + "{% endif %}"
    )
    messages = [user("Rain?"), call(), result("sun"), call(), result("more sun"), assistant("No.")]
    turns = trained(source, messages, True)
    assert [before.endswith(EMPTY_BLOCK) for before, _ in turns] == [True] * 3
    assert [text[:6] for _, text in turns] == ["<call>", "<call>", "No.<tu"]


@pytest.mark.parametrize(("space", "prompt"), [("", ""), (" ", ""), ("    ", "\n")])
def test_a_call_without_a_header_follows_a_prompt_without_one(space: str, prompt: str) -> None:
    """The last question reads differently from earlier ones, so every turn is a sequence of its own."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ 'LAST' if loop.last else 'INST' }}]{{ m.content }}"
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}[/INST]{% elif m.role == 'assistant' %}"
        + space
        + "{{ m.content }}"
        "{% if m.tool_calls %}[CALLS]"
        + calls()
        + "{% endif %}</s>{% else %}[RESULT]{{ m.content }}[/RESULT]{% endif %}{% endfor %}"
    ) + ("{{ '\n' if messages[-1].role != 'assistant' }}" if prompt else "")
    turns = trained(source, [user("Rain?"), call(), result("sun"), assistant("No.")], True)
    assert turns[0][0].startswith("[LAST]Rain?")
    assert turns[0][0].endswith("[/INST]" + prompt)
    assert turns[0][1].lstrip().startswith("[CALLS]<call>")
    assert turns[1][0].endswith("[/RESULT]" + prompt)
    assert turns[1][1].strip() == "No.</s>"


def test_a_turn_is_closed_once_by_a_template_that_closes_the_last_one_twice() -> None:
    source = template("<bot>{{ m.content }}", "<bot>") + "{% if messages[-1].role == 'assistant' %}\n<end>{% endif %}"
    turns = trained(source, [user("2+2?"), assistant("4."), user("3+3?"), assistant("6.")])
    assert [text for _, text in turns] == ["4.<end>", "6.<end>"]


def test_a_template_that_does_not_allow_disabled_thinking_always_thinks() -> None:
    refusal = "{% if enable_thinking is false %}{{ raise_exception('always on') }}{% endif %}"
    answer = "<bot><think>{{ m.reasoning_content or '' }}</think>{{ m.content }}"
    source = refusal + template(answer, "<bot><think>")
    assert trained(source, [user("2+2?"), assistant("4.")]) == [("<user>2+2?<bot><think>", "</think>4.<end>")]
    assert trained(source, [user("2+2?"), THOUGHT]) == [("<user>2+2?<bot><think>", "Two and two.</think>Four.<end>")]
    assert Renderer(source, {}).prompt_text([user("2+2?")]) == "<user>2+2?<bot><think>"


def test_the_first_reason_for_refusing_a_template_is_reported() -> None:
    with pytest.raises(DataError, match="no such role"):
        Renderer("{{ raise_exception('no such role') }}", {})


OPEN = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
TALK = [user("Hi"), assistant("Hello"), user("Bye"), assistant("See you ")]


def test_without_an_end_in_the_template_every_turn_ends_with_eos_as_its_last() -> None:
    """A server renders no EOS into history, so that each turn is a sequence of its own behind the prompt that was served."""
    sequences = Renderer(OPEN, {"eos_token": "</s>"}).sequences(conversation({"messages": TALK}))
    first = "### user:\nHi\n\n### assistant:\n"
    second = f"{first}Hello\n\n### user:\nBye\n\n### assistant:\n"
    assert [sequence.chunks for sequence in sequences] == [[first, "Hello</s>"], [second, "See you </s>"]]
    assert all(sequence.apart and not sequence.open_ends for sequence in sequences)


def test_without_any_end_the_turns_are_counted() -> None:
    (sequence,) = Renderer(OPEN, {}).sequences(conversation({"messages": TALK}))
    assert sequence.open_ends == 2
