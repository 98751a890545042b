"""Conversations with a question and its answer in each turn, as MOSS, Firefly, ms-swift and xtuner have them."""

from typing import Any

import pytest
from support.chats import assistant, system, user

from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.errors import RowError
from sft_hydra.records import Message
from sft_hydra.schema.data import SourceConfig

PAIRS = [("human", "assistant"), ("input", "output")]


def messages(row: dict[str, Any]) -> list[Message]:
    return list(to_conversation(row, SourceConfig(), "test", "test:1").messages)


@pytest.mark.parametrize(("question", "answer"), PAIRS)
def test_each_turn_is_a_question_and_its_answer(question: str, answer: str) -> None:
    turns = [{question: "a", answer: "A"}, {question: "b", answer: "B"}]
    expected = [user("a"), assistant("A"), user("b"), assistant("B")]
    assert messages({"conversation": turns}) == expected
    assert messages({"conversation": turns, "system": "S"}) == [system("S"), *expected]


def test_the_keys_of_xtuner() -> None:
    turns = [{"system": "S", "input": "a", "output": "A", "output_with_loss": False}, {"input": "b", "output": "B"}]
    found = messages({"conversation": turns})
    assert found == [system("S"), user("a"), assistant("A", weight=0), user("b"), assistant("B")]


@pytest.mark.parametrize(
    "turns",
    [
        [{"human": "a", "assistant": "A"}, {"human": "b"}],
        [{"human": "a", "assistant": "A"}, "b"],
        [{"human": "a", "assistant": "A", "weight": 0}],
        [{"input": "a", "output": "A"}, {"system": "S", "input": "b", "output": "B"}],
        [{"input": "a", "output": ["A", "B"]}],
    ],
)
def test_turns_that_cannot_be_kept_are_named(turns: list[Any]) -> None:
    with pytest.raises(RowError, match=r"turn [12] must have the texts"):
        messages({"conversation": turns})
