"""Exact match plays conversations turn by turn; one wrong turn of any kind fails the conversation."""

import json

import pytest

from sft_hydra.demo.calculator import execute
from sft_hydra.demo.conversations import HELDOUT_PER_TASK
from sft_hydra.demo.tasks import TASKS
from sft_hydra.errors import DataError
from sft_hydra.evaluation.exact_match import load_items, run_exact_match

CALL = '<tool_call>{"name": "calc", "arguments": {"a": 2, "op": "*", "b": 3}}</tool_call>'


@pytest.fixture
def items(tmp_path):
    call = {"id": "c7", "type": "function", "function": {"name": "calc", "arguments": '{"a": 2, "op": "*", "b": 3}'}}
    rows = [
        {"messages": [user("Hi"), said("Hello"), user("Bye"), said("Ciao")], "task": "talk"},
        {
            "messages": [user("Count"), {"role": "assistant", "reasoning_content": "a b", "content": "2"}],
            "task": "count",
        },
        {
            "messages": [
                user("2*3?"),
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c7", "content": "recorded"},
                said("6"),
            ],
            "tools": [{"type": "function", "function": {"name": "calc", "parameters": {}}}],
            "task": "call",
        },
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_items(str(path), None)


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def answerer(answers):
    """A model that knows answers by the last message; remembers the prompts that it saw."""
    seen = []

    def answer(prompts):
        seen.extend(prompts)
        return [answers[prompt.messages[-1]["content"]] for prompt in prompts]

    return answer, seen


RIGHT = {"Hi": "Hello", "Bye": "Ciao", "Count": "<think>a b</think>2", "2*3?": CALL, "6": "6", "recorded": "6"}


def test_all_right_and_calls_are_executed(items):
    answer, seen = answerer(RIGHT)
    result = run_exact_match(items, answer, execute)
    assert result.tasks == {"talk": 1.0, "count": 1.0, "call": 1.0}
    assert result.average == 1.0
    [transcript] = [t for t in result.transcripts if t.task == "call"]
    assert [m["content"] for m in transcript.messages if m["role"] == "tool"] == ["6"]
    assert transcript.expected is None
    assert [p.thinking for p in seen if p.messages[-1]["content"] in ("Count", "Hi")] == [False, True]


def test_recorded_results_where_nothing_is_executed(items):
    answer, seen = answerer(RIGHT)
    assert run_exact_match(items, answer, None).tasks["call"] == 1.0
    assert "recorded" in [prompt.messages[-1]["content"] for prompt in seen]


@pytest.mark.parametrize(
    ("task", "wrong"),
    [
        ("talk", {"Hi": "Hullo"}),
        ("talk", {"Bye": "ciao"}),
        ("count", {"Count": "2"}),
        ("count", {"Count": "<think>a b c</think>2"}),
        ("count", {"Count": "<think>a b</think>3"}),
        ("call", {"2*3?": CALL.replace("3", "4")}),
        ("call", {"2*3?": CALL.replace("calc", "calk")}),
        ("call", {"2*3?": CALL + CALL}),
        ("call", {"2*3?": "6"}),
        ("call", {"6": "7"}),
    ],
)
def test_one_wrong_turn_fails_its_conversation_only(items, task, wrong):
    answer, _ = answerer({**RIGHT, **wrong})
    result = run_exact_match(items, answer, execute)
    assert result.tasks == {name: float(name != task) for name in ("talk", "count", "call")}
    assert result.average == pytest.approx(2 / 3)
    [failed] = [t for t in result.transcripts if t.expected is not None]
    assert failed.task == task


def test_turns_are_batched(items):
    calls = []

    def answer(prompts):
        calls.append(len(prompts))
        return [RIGHT[prompt.messages[-1]["content"]] for prompt in prompts]

    run_exact_match(items, answer, execute)
    assert calls == [3, 2]


def test_bundled_items_and_their_limit():
    assert len(load_items("demo", None)) == len(TASKS) * HELDOUT_PER_TASK
    assert len(load_items("demo", 2)) == len(TASKS) * 2


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"messages"\n')
    with pytest.raises(DataError, match=r"eval.exact_match.path: .*bad.jsonl:2: not JSON"):
        load_items(str(path), None)
    path.write_text('{"messages": []}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: .*messages"):
        load_items(str(path), None)
    with pytest.raises(DataError, match="does not exist or contains no input files"):
        load_items(str(tmp_path / "none.jsonl"), None)
