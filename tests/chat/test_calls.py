"""The name of a tool call is text, or the row is rejected."""

from typing import Any

import pytest

from sft_hydra.chat.calls import read_call
from sft_hydra.errors import RowError


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": {"a": 1}, "tool_name": "f", "arguments": {}}},
        {"function": {"name": ["f"], "function": "f", "arguments": {}}},
        {"function": "f", "name": {"a": 1}, "arguments": {}},
        {"function": {"name": 3, "arguments": {}}},
    ],
)
def test_a_name_that_is_not_text(call: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=r"the name of a tool call must be text, not (dict|list|int)"):
        read_call(call)


def test_a_name_under_another_key() -> None:
    expected = {"name": "f", "arguments": {"x": 1}}
    for function in (
        {"tool_name": "f", "arguments": {"x": 1}},
        {"name": None, "action": "f", "action_input": {"x": 1}},
    ):
        assert read_call({"function": function})["function"] == expected
        assert read_call(function)["function"] == expected
