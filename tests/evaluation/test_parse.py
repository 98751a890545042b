"""Generated texts become messages: reasoning, content and calls apart, and nothing is lost."""

import pytest

from sft_hydra.evaluation.parse import parse_answer


def call(n, name, arguments):
    return {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", {"content": "Hello."}),
        ("<think> n u t</think> 3", {"reasoning_content": "n u t", "content": "3"}),
        ("<think>\n\n</think>\n\nYes", {"content": "Yes"}),
        ("<think>\nnever closed", {"reasoning_content": "never closed", "content": ""}),
        (
            '<tool_call>\n{"name": "calc", "arguments": {"a": 1, "op": "+", "b": 2}}\n</tool_call>',
            {"content": "", "tool_calls": [call(1, "calc", {"a": 1, "op": "+", "b": 2})]},
        ),
        (
            'Both: <tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g"}</tool_call>',
            {"content": "Both:", "tool_calls": [call(1, "f", {}), call(2, "g", {})]},
        ),
        (
            "<tool_call>\n<function=find>\n<parameter=text>\ntwo\nlines\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
            "</function>\n</tool_call>",
            {"content": "", "tool_calls": [call(1, "find", {"text": "two\nlines", "n": 3})]},
        ),
    ],
)
def test_parts_of_an_answer(text, expected):
    assert parse_answer(text) == {"role": "assistant", **expected}


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{'name': 'calc'}</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        f'<tool_call>{{"name": "f", "arguments": {"[" * 100_000}}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}',
        "a </think> b",
    ],
)
def test_what_is_no_call_stays_content(text):
    assert parse_answer(text) == {"role": "assistant", "content": text}
