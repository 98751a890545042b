"""Rows of every format become the same conversations; what does not fit is told with a reason."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chats import TOOL, assistant, call, system, user, write_jsonl

from sft_hydra.chat.message import check_message
from sft_hydra.chat.render import Renderer
from sft_hydra.chat.row_renderer import RowRenderer
from sft_hydra.data_prep.conversation import ConversationReader, to_conversation
from sft_hydra.data_prep.nulls import prune_nulls
from sft_hydra.data_prep.sources import Source, files_of, read_rows
from sft_hydra.errors import RowError
from sft_hydra.schema.data import SourceConfig

GREETING = [user("Hi"), assistant("Hello")]


def convert(row: Any, **options: Any) -> Any:
    source = SourceConfig(**options)
    reader = ConversationReader(source, "test")
    outcomes = [_outcome(lambda: to_conversation(row, source, "test", "test:1"))]
    outcomes += [_outcome(lambda: reader.conversation(row, "test:1")) for _ in range(2)]  # its keys are new, and known
    assert outcomes[0] == outcomes[1] == outcomes[2]
    return to_conversation(row, source, "test", "test:1")


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except RowError as problem:
        return problem.reason, problem.detail


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"messages": GREETING}, {}),
        ({"chat": GREETING}, {"messages_key": "chat"}),
        (GREETING, {}),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, {}),
        ({"conversations": GREETING}, {}),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, {}),
        ({"prompt": "Hi", "completion": "Hello"}, {}),
        ({"prompt": GREETING[:1], "completion": GREETING[1:]}, {}),
        ({"q": "Hi", "a": "Hello"}, {"input_key": "q", "output_key": "a"}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, assistant("Hello")]}, {}),
        ({"messages": [{**user("Hi"), "name": None}, assistant("Hello", tool_calls=None, reasoning_content=None)]}, {}),
    ],
)
def test_formats_agree(row: Any, options: dict[str, Any]) -> None:
    assert convert(row, **options).messages == GREETING


def test_system_prompts_are_added_once() -> None:
    row = {"messages": GREETING, "sys": "Be brief."}
    assert convert(row, system_key="sys").messages[0] == system("Be brief.")
    assert convert(row, system_prompt="Be kind.").messages[0] == system("Be kind.")
    both = convert({"messages": [system("Own."), *GREETING]}, system_prompt="Be kind.").messages
    assert [message["content"] for message in both] == ["Own.", "Hi", "Hello"]


def test_alpaca_input_and_sharegpt_tools() -> None:
    row = {"instruction": "Add", "input": "1 and 2", "output": "3"}
    assert convert(row).messages[0]["content"] == "Add\n\n1 and 2"
    turns = [
        {"from": "human", "value": "Rain?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"place": "Oslo"}}'},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "No."},
    ]
    talk = convert({"conversations": turns, "system": "S", "tools": "[]"})
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert talk.messages[2]["tool_calls"][0]["function"]["arguments"] == {"place": "Oslo"}


@pytest.mark.parametrize(
    "function",
    [
        {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"function": {"name": "f", "arguments": {"x": 1}}},
        {"name": "f", "arguments": {"x": 1}},
        {"name": "f", "arguments": ' {"x": 1}'},
    ],
)
def test_tool_calls_of_any_shape(function: dict[str, Any]) -> None:
    (found,) = convert({"messages": [user("x"), assistant("", tool_calls=[function])]}).messages[1]["tool_calls"]
    assert found["function"] == {"name": "f", "arguments": {"x": 1}}


def test_long_integers_stay_what_they_are(tmp_path: Path) -> None:
    number = 123456789012345678901234567890
    for arguments in ({"id": number}, json.dumps({"id": number})):
        row = {"messages": [user("x"), assistant("", tool_calls=[{"name": "f", "arguments": arguments}])]}
        source = Source("s", SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", [row]))))
        ((_, read),) = read_rows(files_of(source)[0], source, 0, None)
        assert convert(read).messages[1]["tool_calls"][0]["function"]["arguments"] == {"id": number}


@pytest.mark.parametrize("empty", [None, "", "  ", {}, "{}"])
def test_calls_without_arguments(empty: Any) -> None:
    row = {"messages": [user("x"), assistant("", tool_calls=[{"name": "f", "arguments": empty}])]}
    assert convert(row).messages[1]["tool_calls"][0]["function"]["arguments"] == {}


def test_tools_flat_wrapped_and_as_text() -> None:
    flat = TOOL["function"]
    for tools in ([TOOL], [flat], json.dumps([TOOL])):
        assert convert({"messages": GREETING, "tools": tools}).tools == [TOOL]
    assert convert({"messages": GREETING, "tools": []}).tools is None
    assert convert({"messages": GREETING, "tools": ""}).tools is None


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nwhy\n</think>\n\nbecause", "why", "because"),
        ("<think>why</think>because", "why", "because"),
        ("why\n</think>\n\nbecause", "why", "because"),
        ("<think></think>because", None, "because"),
        ("<think>\n\n</think>\n\nbecause", None, "because"),
        ("a </think> in a sentence", None, "a </think> in a sentence"),
        ("First.<think>no</think>", None, "First.<think>no</think>"),
        ("<think>never closed", None, "<think>never closed"),
    ],
)
def test_inline_reasoning(content: str, reasoning: str | None, rest: str) -> None:
    message = convert({"messages": [user("x"), assistant(content)]}).messages[1]
    assert (message.get("reasoning_content"), message["content"]) == (reasoning, rest)


def test_a_reasoning_field_goes_before_inline_text_and_has_other_names() -> None:
    message = convert({"messages": [user("x"), assistant("</think>\nrest", reasoning_content="own")]}).messages[1]
    assert (message["reasoning_content"], message["content"]) == ("own", "</think>\nrest")
    for key in ("reasoning", "thinking"):
        message = convert({"messages": [user("x"), assistant("rest", **{key: "why"})]}).messages[1]
        assert message == assistant("rest", reasoning_content="why")


def test_results_given_as_objects_are_written_as_json() -> None:
    row = {"messages": [user("x"), call(), {"role": "tool", "content": {"rain": False, "ü": 1}}]}
    assert convert(row).messages[2]["content"] == '{"rain":false,"ü":1}'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no_messages"),
        ({"messages": None}, "no_messages"),
        ({"messages": []}, "no_messages"),
        ({"messages": {"role": "user"}}, "no_messages"),
        ("text", "format"),
        ({"messages": ["text"]}, "format"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"messages": [{"role": 3, "content": "x"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [user("x"), assistant("", tool_calls={"name": "f"})]}, "tool_calls"),
        ({"messages": [user("x"), assistant("", tool_calls=[{"arguments": {}}])]}, "tool_calls"),
        ({"messages": [user("x"), assistant("", tool_calls=[{"name": "f", "arguments": "{"}])]}, "tool_arguments"),
        ({"messages": [user("x"), assistant("", tool_calls=[{"name": "f", "arguments": "3"}])]}, "tool_arguments"),
        ({"messages": GREETING, "tools": {"name": "f"}}, "tools"),
        ({"messages": [user("x"), assistant("y", weight=0.5)]}, "weight"),
    ],
)
def test_what_does_not_fit_has_a_reason(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        convert(row)
    assert caught.value.reason == reason


def test_nulls_of_columnar_files_are_pruned_everywhere() -> None:
    filled = {"a": None, "b": [{"c": None, "d": 0}], "e": {"f": None, "g": ""}}
    assert prune_nulls(filled) == {"b": [{"d": 0}], "e": {"g": ""}}


def test_the_row_given_is_not_changed() -> None:
    row = {"messages": [user("x"), assistant("<think>a</think>b", tool_calls=[{"name": "f", "arguments": "{}"}])]}
    before = repr(row)
    convert(row)
    assert repr(row) == before


KEYS = st.sampled_from(["role", "content", "reasoning_content", "name", "weight", "tool_calls", "thinking", "from"])
VALUES = st.sampled_from(["user", "assistant", "system", "human", "x", "", " ", "a</think>b", None, 0, [], {}])
MESSAGE = st.one_of(
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.sampled_from(
        [user("Hi"), assistant("Hello"), assistant("Hello", reasoning_content="hm"), assistant("a", x=1), 3]
    ),
)
ROW = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=4)},
    optional={
        "id": st.sampled_from([1, "", None, {}]),
        "tools": st.just([]),
        "system": st.just("s"),
        "prompt": st.just("p"),
    },
)


@settings(max_examples=300, deadline=None)
@given(ROW, st.sampled_from([{}, {"system_prompt": "s"}, {"format": "openai"}, {"messages_key": "id"}]))
def test_a_reader_of_many_rows_gives_the_same_conversations(row: Any, options: dict[str, Any]) -> None:
    with suppress(RowError):
        convert(row, **options)


def test_messages_that_need_no_conversion_are_those_that_conversion_leaves_as_they_are() -> None:
    talks = [
        [user("Hi"), assistant("Hello", reasoning_content="hm")],
        [user("Hi"), assistant("a", reasoning_content="b</think>")],
    ]
    for messages in talks:
        assert convert({"messages": messages}).messages == [check_message(message) for message in messages] == messages


@pytest.mark.parametrize("key", ["train_on_turn", "is_masked_out", "no_loss_here", "learnable", "turn_weight"])
@pytest.mark.parametrize("value", [False, 0, "true"])
def test_an_unknown_key_that_looks_like_a_training_flag_rejects_the_row(key: str, value: Any) -> None:
    row = {"messages": [user("a?"), {**assistant("A."), key: value}]}
    with pytest.raises(RowError, match=f"{key}=.*rename it") as problem:
        to_conversation(row, SourceConfig(), "s", "f:1")
    assert problem.value.reason == "training_flag"
    row["messages"][1][key] = "a text or a number that is no flag: 0.25"
    assert f"messages.{key}" in to_conversation(row, SourceConfig(), "s", "f:1").unread


def test_a_row_with_an_unknown_list_of_flags_is_rejected() -> None:
    row = {"messages": [user("a?"), assistant("A.")], "turns_to_train": [0, 1]}
    with pytest.raises(RowError, match="turns_to_train has a flag for each message"):
        to_conversation(row, SourceConfig(), "s", "f:1")
    row["turns_to_train"] = [3, 4]
    assert to_conversation(row, SourceConfig(), "s", "f:1").unread == {"turns_to_train"}


def test_several_answers_in_a_column_are_not_joined() -> None:
    with pytest.raises(RowError, match="output is a list of 2 texts"):
        to_conversation({"instruction": "Do it", "output": ["One", "Two"]}, SourceConfig(), "s", "f:1")


def test_analysis_messages_are_the_reasoning_of_the_message_that_follows() -> None:
    analysis = {"role": "assistant", "channel": "analysis", "content": "Hm."}
    final = {"role": "assistant", "channel": "final", "content": "A."}
    talk = to_conversation({"messages": [user("a?"), analysis, final]}, SourceConfig(), "s", "f:1")
    assert talk.messages[1:] == [{"role": "assistant", "content": "A.", "reasoning_content": "Hm."}]
    assert not talk.unread
    for messages in ([user("a?"), analysis], [user("a?"), analysis, user("b?"), final]):
        with pytest.raises(RowError, match="analysis message is not followed"):
            to_conversation({"messages": messages}, SourceConfig(), "s", "f:1")
    with pytest.raises(RowError, match="channel='whisper'"):
        to_conversation({"messages": [user("a?"), {**final, "channel": "whisper"}]}, SourceConfig(), "s", "f:1")


def test_the_name_of_a_speaker_is_unread_unless_the_template_prints_it() -> None:
    talk = to_conversation({"messages": [{**user("a?"), "name": "Ada"}, assistant("A.")]}, SourceConfig(), "s", "f:1")
    calls = "{% for call in m.tool_calls or [] %}{{ call.name }}{% endfor %}"
    for part, unread in ((calls, {"messages.name"}), ("{{ m.name }}" + calls, set()), ("{{ m['name'] }}", set())):
        source = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + part + "</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        renderer = RowRenderer(partial(Renderer, source))
        assert renderer.unread(talk) == unread
