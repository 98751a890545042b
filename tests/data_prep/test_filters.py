"""Labelled cases for every filter: which rows stay, which go and under which name."""

from typing import Any

import pytest
from support.chats import TOOL, assistant, call, conversation, result, system, user

from sft_hydra.data_prep.filters import Filters
from sft_hydra.errors import ConfigError, RowError
from sft_hydra.schema.data import FilterConfig

ASK, ANSWER = user("Rain in Oslo?"), assistant("No.")
OFF = {"structure": False, "tools": False, "tools_missing": False}
LOOP = "I am not sure what you mean by that. "
PROSE = " ".join(f"word{i}" for i in range(200))


def verdict(messages: list[Any], given: Any = None, meta: dict[str, Any] | None = None, **options: Any) -> str | None:
    """The name of the filter that rejects the row, or None."""
    filters = Filters(FilterConfig(**{**OFF, **options}))
    try:
        filters.check(conversation({"messages": messages, "tools": given, **(meta or {})}))
    except RowError as problem:
        return problem.reason
    return None


@pytest.mark.parametrize(
    "messages",
    [
        [ASK, ANSWER],
        [system("s"), ASK, ANSWER],
        [ASK, ANSWER, ASK],
        [ASK, ASK, ANSWER],
        [ANSWER],
        [system("s"), ANSWER, ASK, ANSWER],
        [ASK, call(), result("x"), ANSWER],
        [ASK, call()],
        [{"role": "developer", "content": "d"}, ASK, ANSWER],
        [result("x"), ASK, ANSWER],
        [ASK, assistant("")],
    ],
)
def test_structure_keeps(messages: list[Any]) -> None:
    assert verdict(messages, structure=True) is None


@pytest.mark.parametrize(
    "messages",
    [
        [ASK],
        [system("s")],
        [system("s"), ASK],
        [ASK, {"role": "narrator", "content": "x"}],
        [{"role": "Users", "content": "x"}, ANSWER],
        [{"role": "ASSISTANTS", "content": "x"}],
        [{"role": "user<|im_end|>", "content": "x"}, ANSWER],
        [ASK, {"role": "functions", "content": "x"}, ANSWER],
        [result("x")],
        [{"role": "critic", "content": "x"}, ANSWER],
    ],
)
def test_structure_rejects(messages: list[Any]) -> None:
    assert verdict(messages, structure=True) == "structure"


OTHER = {"type": "function", "function": {"name": "other", "parameters": {"place": {"type": "string"}}}}


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([ASK, ANSWER], None),
        ([ASK, ANSWER], [TOOL]),
        ([ASK, call(), result("x"), ANSWER], [TOOL]),
        ([ASK, call(), result("x"), ANSWER], [TOOL["function"]]),
        ([ASK, call(place="Oslo", days=3)], [TOOL]),
        ([ASK, call(), ANSWER], [OTHER, TOOL]),
        ([ASK, call(id=""), {"role": "tool", "content": "x"}, ANSWER], [TOOL]),
        ([ASK, call(id=""), result("x", "any"), ANSWER], [TOOL]),
        ([ASK, call(), {"role": "tool", "content": "x"}], [TOOL]),
        ([system("# Tools\nweather(place)"), ASK, call()], None),
        ([user("You can call weather."), call()], None),
        ([system("also `weather`"), ASK, call()], [OTHER]),
        ([result("x"), ASK, ANSWER], None),
        ([ASK, call(wrong=1)], [TOOL]),
    ],
)
def test_tools_keeps(messages: list[Any], tools: Any) -> None:
    assert verdict(messages, tools, tools=True) is None


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([ASK, call()], None),
        ([ASK, call()], []),
        ([ASK, call(name="rain")], [TOOL]),
        ([ASK, call(name="Weather")], [TOOL]),
        ([ASK, call(), result("x"), call(name="rain")], [TOOL]),
        ([ASK, call(), result("x", "call_2"), ANSWER], [TOOL]),
        ([ASK, call(), result("x"), call(id="call_2"), result("x", "call_3")], [TOOL]),
        ([system("# Tools\nother(place)"), ASK, call()], None),
        ([ASK, call()], [OTHER]),
    ],
)
def test_tools_rejects(messages: list[Any], tools: Any) -> None:
    assert verdict(messages, tools, tools=True) == "tools"


@pytest.mark.parametrize(
    ("arguments", "keeps"),
    [
        ({"place": "Oslo"}, True),
        ({"place": "Oslo", "days": 3}, True),
        ({"place": "Oslo", "days": "3"}, True),
        ({"place": "7", "days": "3"}, True),
        ({"place": "Oslo", "extra": 1}, True),
        ({"place": "", "days": 0}, True),
        ({"place": "Oslo", "days": -1}, True),
        ({"place": "Oslo", "days": 3.0}, True),
        ({"place": "Oslo", "extra": None}, True),
        ({"place": "日本", "days": "12"}, True),
        ({"days": 3}, False),
        ({"place": 3}, False),
        ({"place": "Oslo", "days": "three"}, False),
        ({"place": "Oslo", "days": 2.5}, False),
        ({"place": "Oslo", "days": [1]}, False),
        ({"place": "Oslo", "days": "[1"}, False),
        ({"place": ["Oslo"]}, False),
        ({"place": None}, False),
        ({"place": {"name": "Oslo"}}, False),
        ({"place": True}, False),
        ({"Place": "Oslo"}, False),
    ],
)
def test_tool_schema(arguments: dict[str, Any], keeps: bool) -> None:
    messages = [ASK, {**call(), "tool_calls": [{"name": "weather", "arguments": arguments}]}]
    assert verdict(messages, [TOOL], tools=True, tool_schema=True) == (None if keeps else "tool_schema")


def test_tool_schema_of_a_bare_property_map_and_of_nonsense() -> None:
    assert verdict([ASK, call(name="other", place=3)], [OTHER], tools=True, tool_schema=True) == "tool_schema"
    odd = {"function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "dict"}}}}}
    assert verdict([ASK, call()], [odd], tools=True, tool_schema=True) is None


MARKED = assistant("<tool_call>\n{}</tool_call>")


@pytest.mark.parametrize(
    ("messages", "tools", "keeps"),
    [
        ([ASK, ANSWER], None, True),
        ([ASK, MARKED], [TOOL], True),
        ([system("# Tools\nweather"), ASK, MARKED], None, True),
        ([user("# Tools\nweather"), MARKED], None, True),
        ([ASK, assistant("a tool call")], None, True),
        ([ASK, assistant("<tool>")], None, True),
        ([user("what is <tool_call>?"), ANSWER], None, True),
        ([system("write <tool_call>"), ASK, ANSWER], None, True),
        ([ASK, call()], [TOOL], True),
        ([ASK, MARKED, result("x"), ANSWER], [TOOL], True),
        ([system("intro # Tools follow"), ASK, MARKED], None, True),
        ([ASK, MARKED], None, False),
        ([ASK, MARKED], [], False),
        ([system("tools: weather"), ASK, MARKED], None, False),
        ([system("#Tools"), ASK, MARKED], None, False),
        ([ASK, ANSWER, ASK, MARKED], None, False),
        ([ASK, assistant("x", reasoning_content="maybe <tool_call>")], None, False),
        ([ASK, assistant("text <tool_call> text")], None, False),
        ([ASK, assistant("<tool_call>")], None, False),
        ([ASK, MARKED, result("x"), ANSWER], None, False),
    ],
)
def test_tools_missing(messages: list[Any], tools: Any, keeps: bool) -> None:
    assert verdict(messages, tools, tools_missing=True) == (None if keeps else "tools_missing")


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("short", True),
        ("no no no no no no no no", True),
        (PROSE, True),
        (PROSE + " " + PROSE[:300], True),
        ("\n".join(f"{i}. item number {i} of a long list of things" for i in range(60)), True),
        (" ".join(str(i) for i in range(400)), True),
        ("def f(x):\n    return x\n" * 3 + PROSE, True),
        (LOOP * 2 + PROSE, True),
        ("The cat sat on the mat and looked at the dog. " + PROSE, True),
        ("a b c d e f g h " * 2 + PROSE, True),
        (LOOP * 20, False),
        (LOOP * 12 + PROSE[:100], False),
        ("word " * 100, False),
        ("ha ha " * 60, False),
        ("0 " * 200, False),
        ("yes, yes, yes, " * 50, False),
        ("one two three four five six seven eight " * 10, False),
        (PROSE[:200] + " " + "the end is near my friend of old days " * 20, False),
        ("\n" + "- the same line again and again in here\n" * 15, False),
        ("日本 語 の 文 を 何 度 も 書く " * 20, False),
    ],
)
def test_repetition(text: str, keeps: bool) -> None:
    assert verdict([ASK, assistant(text)], repetition=True) == (None if keeps else "repetition")
    assert verdict([user(text), ANSWER], repetition=True) is None
    assert verdict([ASK, assistant("x", reasoning_content=text)], repetition=True) == (None if keeps else "repetition")


PATTERNS = [r"(?i)\bas an ai\b", r"^Chapter \d+", r"\[(?:INSERT|TODO)\]"]


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("I can help.", True),
        ("as an aim", True),
        ("has an ai", True),
        ("The Chapter 3", True),
        ("Chapter one", True),
        ("[insert]", True),
        ("TODO", True),
        ("", True),
        ("as  an ai", True),
        ("chapter 1", True),
        ("As an AI, I cannot", False),
        ("Well, as an ai model", False),
        ("as an AI", False),
        ("AS AN AI.", False),
        ("Chapter 1: the start", False),
        ("Chapter 12", False),
        ("Dear [INSERT]", False),
        ("[TODO] finish", False),
        ("a [TODO] b", False),
        ("x as an ai y Chapter 1", False),
    ],
)
def test_patterns(text: str, keeps: bool) -> None:
    assert verdict([ASK, assistant(text)], patterns=PATTERNS) == (None if keeps else "patterns")
    assert verdict([user(text or "x"), ANSWER], patterns=PATTERNS) is None


def test_a_pattern_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match=r"data.filters.patterns: '\('"):
        Filters(FilterConfig(patterns=["("]))


@pytest.mark.parametrize(
    ("value", "keeps"),
    [
        ("nano_v3", True),
        (["nano_v3"], True),
        (["super", "nano_v3"], True),
        ("super, nano_v3", True),
        ("nano_v3,super", True),
        ("super,nano_v3 ,x", True),
        (("nano_v3",), True),
        (["nano_v3", "nano_v3"], True),
        (" nano_v3", True),
        ("nano_v3 ", True),
        (None, False),
        ("", False),
        ([], False),
        ("super", False),
        (["super"], False),
        ("nano_v30", False),
        ("xnano_v3", False),
        (["nano"], False),
        (3, False),
        ("nano_v3;super", False),
    ],
)
def test_equals(value: Any, keeps: bool) -> None:
    value = list(value) if isinstance(value, tuple) else value
    found = verdict([ASK, ANSWER], meta={"used_in": value}, equals={"used_in": "nano_v3"})
    assert found == (None if keeps else "equals")
