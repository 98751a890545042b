"""A turn is trained as the model writes it behind the server's prompt: thinking blocks, ids of calls and ends fit that prompt."""

from typing import Any

import pytest
from support.chats import TOOL, assistant, call, conversation, result, user

from sft_hydra.chat.render import Renderer
from sft_hydra.errors import RowError

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
