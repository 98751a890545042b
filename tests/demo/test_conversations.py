"""The bundled conversations are the same every time, of several kinds, and training holds nothing held out."""

import json
import re
from collections import Counter

import jsonschema
import pytest

from sft_hydra.demo.conversations import HELDOUT_PER_TASK, rows
from sft_hydra.demo.items import divide
from sft_hydra.demo.tasks import TASKS
from sft_hydra.errors import DataError


@pytest.fixture(scope="module")
def parts():
    return {part: list(rows(part)) for part in ("train", "drill", "heldout")}


def user_texts(rows):
    return {m["content"] for row in rows for m in row["messages"] if m["role"] == "user"}


def test_same_rows_every_time_and_others_for_another_seed(parts):
    for part, made in parts.items():
        assert list(rows(part)) == made
    assert list(rows("heldout", seed=1)) != parts["heldout"]


def test_unknown_part_lists_the_parts():
    with pytest.raises(DataError, match=r"demo:tests.*train, drill, heldout"):
        rows("tests")


@pytest.mark.parametrize("seed", [0, 7])
def test_no_heldout_question_occurs_in_training(seed):
    learned = user_texts([*rows("train", seed), *rows("drill", seed)])
    assert not learned & user_texts(rows("heldout", seed))


@pytest.mark.parametrize("seed", [0, 7])
def test_no_heldout_item_occurs_in_training_in_any_phrasing(seed):
    learned = [text for text in user_texts([*rows("train", seed), *rows("drill", seed)]) if "Repeat" not in text]
    asked = " ".join(user_texts(rows("heldout", seed)))
    quoted = {word for text in learned for word in re.findall('"([a-z]+)"', text)}
    assert not quoted & set(re.findall('"([a-z]+)"', asked))
    asked_pairs = {
        tuple(pair) for text in user_texts(rows("heldout", seed)) if len(pair := re.findall(r"\d+", text)) == 2
    }
    assert asked_pairs
    assert not asked_pairs & {tuple(re.findall(r"\d+", text)) for text in learned}
    training, heldout = divide(seed)
    assert not set(training.words) & set(heldout.words)
    assert not set(training.names) & set(heldout.names)
    assert not {name for text in learned for name in re.findall(r"\w+", text)} & set(heldout.names)


def test_every_task_is_asked_equally_often(parts):
    assert Counter(row["task"] for row in parts["heldout"]) == dict.fromkeys(TASKS, HELDOUT_PER_TASK)


def test_kinds_of_conversations(parts):
    made = parts["train"]
    assert len(made) >= 2000
    assert any(sum(m["role"] == "user" for m in row["messages"]) == 3 for row in made)
    assert any(row["messages"][0]["role"] == "system" for row in made)
    assert any(m.get("reasoning_content") for row in made for m in row["messages"])
    assert len({json.dumps(row["tools"]) for row in made if "tools" in row}) > 3


def test_calls_fit_the_offered_tools_and_results_refer_to_them(parts):
    for row in [*parts["train"], *parts["heldout"]]:
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row.get("tools", [])}
        open_calls = set()
        for message in row["messages"]:
            for call in message.get("tool_calls", []):
                jsonschema.validate(json.loads(call["function"]["arguments"]), tools[call["function"]["name"]])
                open_calls.add(call["id"])
            if message["role"] == "tool":
                assert not message["content"].startswith("error")
                open_calls.remove(message["tool_call_id"])
        assert not open_calls
