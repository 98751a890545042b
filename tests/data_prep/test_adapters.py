"""Rows of every framework become the same conversations; what says what is supervised is obeyed or the row is rejected."""

import json
from typing import Any

import pytest
from support.chats import TOOL, assistant, system, user

from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import SourceConfig

FUNCTION = TOOL["function"]
GREETING = [user("Hi"), assistant("Hello")]
TWO = [user("a"), assistant("A"), user("b"), assistant("B")]


def convert(row: Any, **options: Any) -> Conversation:
    return to_conversation(row, SourceConfig(**options), "test", "test:1")


def supervised(row: Any) -> list[str]:
    """Contents of the answers that are supervised."""
    answers = [message for message in convert(row).messages if message["role"] == "assistant"]
    return [message["content"] for message in answers if message.get("weight", 1) != 0]


def reason(row: Any) -> str:
    with pytest.raises(RowError) as caught:
        convert(row)
    return caught.value.reason


@pytest.mark.parametrize("key", ["weight", "loss", "train", "training", "trainable"])
@pytest.mark.parametrize("value", [False, 0, 0.0, "false", "False", "0", "no", "off", " 0.0 "])
def test_an_answer_that_is_flagged_as_context(key: str, value: Any) -> None:
    messages = [*TWO[:1], assistant("A", **{key: value}), *TWO[2:]]
    assert supervised({"messages": messages}) == ["B"]
    assert supervised({"messages": [{**message, key: 1} for message in TWO]}) == ["A", "B"]
    turns = [{"from": m["role"], "value": m["content"], **{k: v for k, v in m.items() if k == key}} for m in messages]
    assert supervised({"conversations": turns}) == ["B"]


@pytest.mark.parametrize("value", [True, 1, "true", "Yes", "1"])
def test_masked_is_the_other_way_round(value: Any) -> None:
    assert supervised({"messages": [*TWO[:1], assistant("A", masked=value), *TWO[2:]]}) == ["B"]
    assert supervised({"messages": [*TWO[:1], assistant("A", masked=False), *TWO[2:]]}) == ["A", "B"]


@pytest.mark.parametrize(
    "extra",
    [
        {"loss": 0.5},
        {"train": "maybe"},
        {"train": True, "loss": 0},
        {"masked": True, "weight": 1},
        {"mask": 1},
        {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
        {"prefix": True},
    ],
)
def test_flags_that_cannot_be_obeyed(extra: dict[str, Any]) -> None:
    assert reason({"messages": [user("a"), assistant("A", **extra)]}) == "training_flag"


@pytest.mark.parametrize("key", ["loss_mask", "train", "weights", "train_mask", "loss"])
@pytest.mark.parametrize("flags", [[0, 0, 0, 1], [False, False, False, True], ["0", "0", "0", "1"], [None, 0, None, 1]])
def test_flags_of_a_row_for_each_message(key: str, flags: list[Any]) -> None:
    assert supervised({"messages": TWO, key: flags}) == ["B"]
    assert supervised({"messages": TWO, key: flags, "system": "S"}) == ["B"]  # counted without what is put before


def test_flags_of_a_whole_row() -> None:
    assert supervised({"messages": TWO, "masked": [1, 1, 0, 0]}) == ["B"]
    assert supervised({"messages": TWO, "weight": 1, "train": True, "masked": False, "mask": "User"}) == ["A", "B"]
    for flags in ({"weight": 0}, {"train": False}, {"masked": "true"}, {"trainable": 0}):
        assert reason({"messages": TWO, **flags}) == "nothing_to_learn"
    assert reason({"messages": TWO, "weight": 0.3}) == "weight"
    for flags in (  # type: ignore[assignment]
        {"loss_mask": [0, 1]},
        {"masks": [0, 1, 0, 1]},
        {"mask": "assistant"},
        {"mask_ranges": [{"start": 0}]},
    ):
        assert reason({"messages": TWO, **flags}) == "training_flag"
    assert convert({"messages": TWO, "loss": 0.53}).unread == {"loss"}  # a loss that was measured


def test_answers_inside_a_prompt_are_context() -> None:
    assert supervised({"prompt": TWO[:3], "completion": TWO[3:]}) == ["B"]
    assert supervised({"prompt": TWO[:3], "completion": "B"}) == ["B"]
    flagged = [TWO[0], assistant("A", train=True), TWO[2]]
    assert supervised({"prompt": flagged, "completion": TWO[3:]}) == ["B"]
    assert reason({"prompt": "q", "completion": "bad", "label": False}) == "nothing_to_learn"
    assert supervised({"prompt": "q", "completion": "good", "label": True}) == ["good"]


def test_a_negative_example_is_not_supervised() -> None:
    """KTO rows with messages, as LLaMA-Factory has them; labels of a classification are other keys."""
    assert reason({"messages": TWO, "label": False}) == "nothing_to_learn"
    assert convert({"messages": TWO, "label": True}).unread == set()
    assert convert({"messages": TWO, "label": 0}).unread == {"label"}
    assert convert({"messages": TWO, "label": "spam"}).unread == {"label"}


def test_parts_that_have_their_text_under_value() -> None:
    """The newer format of LLaMA-Factory: parts of text, reasoning and calls, and a weight for each message."""

    def text(value: str, kind: str = "text") -> dict[str, str]:
        return {"type": kind, "value": value}

    found = convert(
        {
            "messages": [
                {"role": "system", "content": [text("Be kind.")], "loss_weight": 0.0},
                {"role": "user", "content": [text("Rain in "), text("Oslo?")], "loss_weight": 0.0},
                {
                    "role": "assistant",
                    "content": [
                        text("I look.", "reasoning"),
                        text('{"name": "rain", "arguments": {"town": "Oslo"}}', "tool_call"),
                    ],
                    "loss_weight": 0.0,
                },
                {"role": "tool", "content": [text("[1, 2]")], "loss_weight": 0.0},
                {"role": "assistant", "content": [text("No.", "reasoning"), text("None.")], "loss_weight": 1.0},
            ]
        }
    )
    system, user, call, result, answer = found.messages
    assert (system["content"], user["content"], result["content"]) == ("Be kind.", "Rain in Oslo?", "[1, 2]")
    assert call["tool_calls"][0]["function"] == {"name": "rain", "arguments": {"town": "Oslo"}}
    assert (call["reasoning_content"], call["weight"]) == ("I look.", 0)
    assert (answer["reasoning_content"], answer["content"]) == ("No.", "None.")
    assert "weight" not in answer
    assert found.unread == set()
    assert reason({"messages": [TWO[0], {"role": "assistant", "content": [text("x", "image_url")]}]}) == "content"
    assert (
        reason({"messages": [TWO[0], {"role": "assistant", "content": [text("no json", "tool_call")]}]})
        == "tool_arguments"
    )


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("value", ["Be kind.", [{"type": "text", "text": "Be kind."}]])
def test_a_system_column(key: str, value: Any) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    for row in ({"messages": GREETING}, {"conversations": turns}, {"instruction": "Hi", "output": "Hello"}):
        assert convert({**row, key: value}).messages == [system("Be kind."), *GREETING]
    both = {"messages": [system("Be kind."), *GREETING], key: value}
    assert convert(both).messages == both["messages"]
    assert reason({"messages": [system("Be rude."), *GREETING], key: value}) == "system"
    assert convert({"messages": GREETING, key: ""}).messages == GREETING


def test_histories_of_alpaca_and_of_queries() -> None:
    history = [["a", "A"], ["b", "B"]]
    expected = [*TWO, user("c"), assistant("C")]
    assert convert({"instruction": "c", "input": "", "output": "C", "history": history}).messages == expected
    assert convert({"query": "c", "response": "C", "history": history}).messages == expected
    assert convert({"instruction": "c", "output": "C", "history": TWO}).messages == expected
    assert convert({"instruction": "c", "output": "C", "history": []}).messages == expected[4:]
    assert reason({"instruction": "c", "output": "C", "history": [["a"]]}) == "history"


@pytest.mark.parametrize("key", ["tools", "functions", "tool_defs"])
@pytest.mark.parametrize(
    "given",
    [
        [TOOL],
        [FUNCTION],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [{"functionDeclarations": [FUNCTION]}],
        [{**{k: v for k, v in FUNCTION.items() if k != "parameters"}, "input_schema": FUNCTION["parameters"]}],  # type: ignore[attr-defined, index]
        [{"type": "function", "function": {**FUNCTION, "parameters": json.dumps(FUNCTION["parameters"])}}],  # type: ignore[dict-item, index]
    ],
)
def test_tools_of_any_name_and_form(key: str, given: Any) -> None:
    assert convert({"messages": GREETING, key: given}).tools == [TOOL]


def test_tools_in_two_places() -> None:
    assert convert({"messages": GREETING, "tools": [TOOL], "tool_defs": [FUNCTION]}).tools == [TOOL]
    other = {"type": "function", "function": {"name": "other"}}
    assert reason({"messages": GREETING, "tools": [TOOL], "functions": [other]}) == "tools"
    found = convert({"messages": [{**system("S"), "tools": [TOOL]}, *GREETING]})
    assert (found.messages, found.tools) == ([system("S"), *GREETING], [TOOL])


@pytest.mark.parametrize(
    "made",
    [
        {"function": {"name": "f", "parameters": {"x": None}}},
        {"type": "function", "function": {"name": "f"}, "arguments": {"x": None}},
        {"name": "f", "input": {"x": None}},
        {"name": "f", "args": '{"x": null}'},
        {"tool_name": "f", "arguments": {"x": None}, "input": {}},
        {"type": "function", "function": "f", "arguments": {"x": None}},
    ],
)
def test_arguments_under_another_name(made: dict[str, Any]) -> None:
    for message in ({"tool_calls": [made]}, {"function_call": made}, {"tool_calls": json.dumps([made])}):
        (found,) = convert({"messages": [user("x"), {"role": "assistant", **message}]}).messages[1]["tool_calls"]
        assert found["function"] == {"name": "f", "arguments": {"x": None}}


@pytest.mark.parametrize(
    "made",
    [
        {"function": {"name": "f", "payload": {"x": 1}}},
        {"name": "f", "body": {"x": 1}},
        {"name": "f", "arguments": {"x": 1}, "input": {"x": 2}},
    ],
)
def test_arguments_are_never_lost(made: dict[str, Any]) -> None:
    assert reason({"messages": [user("x"), assistant("", tool_calls=[made])]}) == "tool_arguments"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks"])
@pytest.mark.parametrize(
    "value",
    [
        "why",
        [{"type": "text", "text": "why"}],
        ["w", "hy"],
        {"text": "why"},
        {"content": [{"type": "text", "text": "why"}]},
        [{"type": "reasoning.text", "text": "why", "signature": "s"}],
        [{"type": "thinking", "thinking": "why"}],
    ],
)
def test_reasoning_of_any_form(key: str, value: Any) -> None:
    assert convert({"messages": [user("x"), assistant("y", **{key: value})]}).messages[1] == assistant(
        "y", reasoning_content="why"
    )


def test_reasoning_that_cannot_be_read() -> None:
    secret = [{"type": "reasoning.encrypted", "data": "abc"}]
    assert reason({"messages": [user("x"), assistant("y", reasoning_details=secret)]}) == "reasoning"
    both = assistant("y", reasoning="why", reasoning_details=secret)
    assert reason({"messages": [user("x"), both]}) == "reasoning"
    assert "reasoning_content" not in convert({"messages": [user("x"), assistant("y", reasoning=True)]}).messages[1]


@pytest.mark.parametrize(
    "content",
    [
        "Write the tag alone:\n</think>\nand go on.",
        "It ends so.\n</think>",
        "The tag </think> closes it.",
        "First `<think>`, then\n</think>\n\nat the end.",
    ],
)
def test_an_answer_that_quotes_the_tag_keeps_it(content: str) -> None:
    assert convert({"messages": [user("x"), assistant(content)]}).messages[1] == assistant(content)


@pytest.mark.parametrize(
    "content", ["Write it alone:\n</think>\n\nThen go on.", "```\n</think>\n\n```", "a</think>\n\nb</think>"]
)
def test_a_tag_that_may_be_either_is_told(content: str) -> None:
    assert reason({"messages": [user("x"), assistant(content)]}) == "reasoning"


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("User", "user"), ("GPT", "assistant"), ("MODEL", "assistant"), ("System", "system")]
    + [(name, "tool") for name in ("function", "ipython", "observation", "Tool")],
)
def test_roles_of_other_names(name: str, role: str) -> None:
    messages = convert({"messages": [user("x"), {"role": name, "content": "y"}, assistant("z")]}).messages
    assert messages[1] == {"role": role, "content": "y"}


def test_contents_in_parts() -> None:
    """Anthropic's blocks: reasoning, text, calls and results, each under its own key."""
    blocks = [
        {"type": "thinking", "thinking": "Look.", "signature": "s"},
        {"type": "text", "text": "Wait."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Oslo"}},
    ]
    back = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]}
    row = {
        "messages": [
            user("Rain?"),
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": [back, {"type": "text", "text": "Sure?"}]},
            assistant("Yes."),
        ]
    }
    made = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
    found = convert(row)
    assert found.messages == [
        user("Rain?"),
        assistant("Wait.", reasoning_content="Look.", tool_calls=[made]),
        {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        user("Sure?"),
        assistant("Yes."),
    ]
    assert found.unread == {"content.signature"}


def test_rows_of_gemini() -> None:
    row = {
        "systemInstruction": {"parts": [{"text": "S"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Rain?"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {"place": "Oslo"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"rain": False}}}]},
            {"role": "model", "parts": [{"text": "No."}]},
        ],
        "tools": [{"functionDeclarations": [FUNCTION]}],
    }
    found = convert(row)
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"place": "Oslo"}}
    assert found.messages[3] == {"role": "tool", "name": "weather", "content": '{"rain":false}'}
    assert found.tools == [TOOL]


@pytest.mark.parametrize(
    "message",
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "name": "f", "input": {}}, {"type": "text", "text": "x"}],
        },
        {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image", "source": {}}]}]},
    ],
)
def test_parts_that_cannot_be_kept_are_named(message: dict[str, Any]) -> None:
    assert reason({"messages": [user("x"), message, assistant("y")]}) == "content"
    assert reason({"messages": [user("<image>What?"), assistant("y")], "images": ["a.png"]}) == "content"


@pytest.mark.parametrize("row", [{"messages": GREETING}, {"query": "What is this?", "response": "A cat."}])
def test_media_that_no_text_refers_to(row: dict[str, Any]) -> None:
    assert reason({**row, "images": ["a.png"]}) == "content"
    assert reason({**row, "image": "a.png"}) == "content"
    for empty in ([], [None], None, ""):
        assert convert({**row, "images": empty, "video": empty}).messages == convert(row).messages


def test_keys_that_nobody_reads_are_named() -> None:
    row = {
        "id": 3,
        "empty": [],
        "nothing": None,
        "messages": [
            {**user("a"), "train": True, "name": "Ann"},
            assistant("b", tool_calls=[{"name": "f", "arguments": {}, "index": 0}], audio=None),
        ],
    }
    assert convert(row).unread == {
        *("id", "messages.name", "tool_calls.index", "messages.train (on a message that is no answer)"),
    }


def test_calls_that_stand_one_after_the_other_are_one_turn() -> None:
    made = [{"name": "f", "arguments": {"x": number}} for number in (1, 2)]
    for role, text in (("role", "content"), ("from", "value")):
        calls = [{role: "tool_call", text: json.dumps(call)} for call in made]
        row = {"messages": [{role: "user", text: "q"}, *calls, {role: "tool_response", text: "r"}, assistant("z")]}
        found = convert(row).messages
        assert [call["function"] for call in found[1]["tool_calls"]] == made
        assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant"]


def test_an_answer_beside_the_messages() -> None:
    assert reason({"messages": [*GREETING, user("More?")], "response": "Yes"}) == "content"
    assert convert({"messages": GREETING, "response": "Yes"}).unread == {"response"}
