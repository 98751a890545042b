"""The demo's tools answer right calls, and every wrong call a model may write, with a text."""

import pytest

from sft_hydra.demo.calculator import TOOLS, execute


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("calc", {"a": 12, "op": "+", "b": 30}, "42"),
        ("calc", {"a": 12, "op": "-", "b": 30}, "-18"),
        ("calc", {"a": 99, "op": "*", "b": 99}, "9801"),
        ("letter_at", {"word": "nut", "index": 1}, "n"),
        ("letter_at", {"word": "nut", "index": 3}, "t"),
    ],
)
def test_right_calls(name, arguments, result):
    assert execute(name, arguments) == result


def test_the_hotel_answers_with_one_name():
    assert execute("guest", {"floor": 12, "room": 34}).isalpha()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("calc", {"a": "12", "op": "+", "b": 30}),
        ("calc", {"a": True, "op": "+", "b": 30}),
        ("calc", {"a": 10**5000, "op": "*", "b": 10**5000}),
        ("calc", {"a": 1, "op": "**", "b": 2}),
        ("calc", {"a": 1, "op": ["+"], "b": 2}),
        ("calc", {"a": 1, "op": "+"}),
        ("calc", {"a": 1, "op": "+", "b": 2, "c": 3}),
        ("calc", "1+1"),
        ("calc", None),
        ("letter_at", {"word": "nut", "index": 0}),
        ("letter_at", {"word": "nut", "index": 4}),
        ("letter_at", {"word": ["n"], "index": 1}),
        ("guest", {"floor": "1", "room": 2}),
        ("__import__", {"name": "os"}),
    ],
)
def test_wrong_calls_are_answered_too(name, arguments):
    assert execute(name, arguments).startswith("error: ")


def test_tools_have_different_argument_schemas():
    schemas = [tool["function"]["parameters"]["properties"] for tool in TOOLS.values()]
    assert len({tuple(schema) for schema in schemas}) == len(schemas) >= 2
