"""What of a row stands in its text: proved on the row itself, or learned with words that stand nowhere else."""

import pytest
from support.chats import TOOL, assistant, call, conversation, result, system, user

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.whole import are_unique, lost_of_messages
from sft_hydra.errors import RowError

LONG = "This sentence stands in no other place of the whole row."
TURNS = "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ (m.content or '') }}CALLS</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
DROPS_SECOND_RESULT = TURNS.replace(
    "{% for m in messages %}", "{% for m in messages %}{% if not (m.role == 'tool' and loop.index0 > 3) %}"
).replace("{% endfor %}{% if add", "{% endif %}{% endfor %}{% if add")


def is_unique(text: str, *others: str, source: str = "") -> bool:
    talk = conversation({"messages": [user(text), assistant("A short answer."), *(user(other) for other in others)]})
    return are_unique(talk.messages[:1], talk, source)


def test_only_long_texts_that_stand_nowhere_else_are_unique() -> None:
    assert is_unique(LONG)
    assert is_unique(f"  {LONG}\n")
    assert not is_unique("Yes.")
    assert not is_unique(LONG, f"You said: {LONG}")
    assert not is_unique(LONG, source="{{ '" + LONG + "' }}")


def test_texts_that_calls_or_tools_print_are_not_unique() -> None:
    arguments = '{"place": "Oslo in Norway", "days": 3}'
    messages = [user("Rain?"), call(place="Oslo in Norway", days=3), result(arguments), assistant("No.")]
    talk = conversation({"messages": messages, "tools": [TOOL]})
    assert not are_unique([talk.messages[2]], talk, "")
    assert not are_unique([talk.messages[1]], talk, "")  # a call, whose name the tools have too
    description = "It looks up the weather\nof any place."
    tool = {"type": "function", "function": {**TOOL["function"], "description": description}}
    talk = conversation({"messages": [system(description), user("Hi"), assistant("Hello")], "tools": [tool]})
    assert not are_unique([talk.messages[0]], talk, "")


def test_an_answer_that_is_context_need_not_stand() -> None:
    messages = [user("a?"), assistant("Not in it."), user("b?"), assistant("B.")]
    assert lost_of_messages(messages, [3], [False] * 4, "a? b? B.") is None
    assert lost_of_messages(messages, [1, 3], [False] * 4, "a? b? B.") == "content of a message of the assistant"


@pytest.mark.parametrize("text", [LONG, "ok", '{"name": "weather", "arguments": {"place": "Oslo"}}'])
def test_a_result_that_a_template_drops_rejects_the_row_whatever_its_words(text: str) -> None:
    """Long words are missed in the text; for short ones, and for those that a call prints too, stand-ins are rendered."""
    renderer = Renderer(TOOLS + DROPS_SECOND_RESULT.replace("CALLS", CALLS), {})
    messages = [user("ok"), call(), result("sun"), call(id="call_2"), result(text, "call_2"), assistant("ok, no rain")]
    for _ in range(3):
        with pytest.raises(RowError, match="template_drops"):
            renderer.sequences(conversation({"messages": messages, "tools": [TOOL]}))


def test_tools_are_found_in_every_sequence_of_a_row() -> None:
    """Tools that a template leaves out of longer conversations are not taken for printed because shorter ones had them."""
    source = TOOLS.replace("tools or []", "(tools if messages | length < 5 else [])") + TURNS.replace("CALLS", CALLS)
    renderer = Renderer(source, {})
    short = conversation({"messages": [user("weather?"), assistant("place, days")], "tools": [TOOL]})
    for _ in range(3):
        assert renderer.sequences(short)
    talk = [message for n in range(3) for message in (user(f"weather {n}?"), assistant(f"place {n}, days"))]
    with pytest.raises(RowError, match="template_drops"):
        renderer.sequences(conversation({"messages": talk, "tools": [TOOL]}))
