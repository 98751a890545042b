"""What the config and the row say about supervision reaches the tokens: decoded, the supervised text is the expected one."""

from pathlib import Path
from typing import Any

import pytest
from support.chats import TOOL, assistant, call, data_cfg, rejects, result, sequences, system, user, write_jsonl

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.runners.data_prep import notes
from sft_hydra.schema.data import SplitConfig

TEMPLATE = (
    "{% if style is defined %}<|im_start|>system\nStyle: {{ style }}<|im_end|>\n{% endif %}"
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% if m.reasoning_content %}<think>\n{{ m.reasoning_content | trim }}\n</think>\n"
    "{% else %}<think></think>{% endif %}{% endif %}{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% else %}<think></think>{% endif %}{% endif %}"
)
TWO = [user("aa"), assistant("AA"), user("bb"), assistant("BB")]


def packed_set(folder: Path, rows: list[dict[str, Any]], **data: Any) -> PackedSet:
    cfg = data_cfg(folder / "out", rows=write_jsonl(folder / "rows.jsonl", rows))
    cfg.tokenizer.chat_template = TEMPLATE
    cfg.data.split = SplitConfig(train=1, valid=0, test=0)
    for key, value in data.items():
        setattr(cfg.data, key, value)
    return prepare(cfg)


def supervised(folder: Path, row: dict[str, Any], **data: Any) -> list[str]:
    """Supervised text of each sequence of a row."""
    packed = packed_set(folder, [row], **data)
    tokenizer = load_tokenizer(data_cfg(folder))
    return [
        tokenizer.decode([id_ for id_, learned in zip(ids, mask, strict=True) if learned])
        for ids, mask in sequences(packed)
    ]


def test_roles_to_train(tmp_path: Path) -> None:
    row = {"messages": [system("ss"), *TWO]}
    assert supervised(tmp_path / "1", row) == ["AA<|im_end|>\nBB<|im_end|>\n"]
    assert supervised(tmp_path / "2", row, roles_to_train=["user"]) == ["aa<|im_end|>bb<|im_end|>"]
    both = supervised(tmp_path / "3", row, roles_to_train=["assistant", "user", "system"])
    assert both == ["ss<|im_end|>aa<|im_end|>AA<|im_end|>\nbb<|im_end|>BB<|im_end|>\n"]
    tools = {"messages": [user("q"), call(), result("sun"), assistant("No.")], "tools": [TOOL]}
    (found,) = supervised(tmp_path / "4", tools, roles_to_train=["tool"])
    assert found == "sun<|im_end|>"


def test_only_the_last_turn(tmp_path: Path) -> None:
    assert supervised(tmp_path, {"messages": TWO}, train_on_last_turn=True) == ["BB<|im_end|>\n"]


def test_reasoning_as_context(tmp_path: Path) -> None:
    row = {"messages": [user("q"), assistant("aa", reasoning_content="  why\nso  ")]}
    assert supervised(tmp_path / "1", row) == ["why\nso\n</think>\naa<|im_end|>\n"]
    assert supervised(tmp_path / "2", row, mask_reasoning=True) == ["\n</think>\naa<|im_end|>\n"]
    assert supervised(tmp_path / "3", {"messages": TWO[:2]}, mask_reasoning=True) == ["AA<|im_end|>\n"]


def test_neighbours_of_one_role(tmp_path: Path) -> None:
    row = {"messages": [user("a"), user("b"), assistant("A"), assistant("B", weight=0), assistant("C"), assistant("D")]}
    assert supervised(tmp_path, row, merge_same_role=True) == ["A<|im_end|>\nC\n\nD<|im_end|>\n"]


def test_a_row_hands_words_to_its_template(tmp_path: Path) -> None:
    rows = [
        {"messages": TWO[:2], "chat_template_kwargs": {"style": f"terse number {n} <|im_end|>", "none": 1}}
        for n in range(9)
    ]
    thought = [user("q"), assistant("aa", reasoning_content="why")]
    rows += [{"messages": thought, "chat_template_kwargs": {"enable_thinking": False}}, {"messages": thought}]
    packed = packed_set(tmp_path, rows)
    tokenizer = load_tokenizer(data_cfg(tmp_path))
    texts = [tokenizer.decode(list(ids)) for ids, _ in sequences(packed)]
    assert sum("Style: terse number 3 <|im_end|><|im_end|>" in text for text in texts) == 1
    end = tokenizer.backend.token_to_id("<|im_end|>")
    assert all(
        ids.count(end) == text.count("<|im_start|>") for (ids, _), text in zip(sequences(packed), texts, strict=True)
    )
    assert sum("<think></think>aa" in text for text in texts) == 1  # the mode that the row names
    assert sum("<think>\nwhy\n</think>\naa" in text for text in texts) == 1
    unread = packed.metadata["sources"][0]["unread"]
    assert unread["chat_template_kwargs.none"] == 9
    assert unread["messages.reasoning_content (the row says enable_thinking=false)"] == 1


def test_an_end_of_turn_that_is_not_one_token_is_reported(tmp_path: Path) -> None:
    cfg = data_cfg(tmp_path / "out", rows=write_jsonl(tmp_path / "rows.jsonl", [{"messages": TWO}] * 3))
    cfg.tokenizer.chat_template = TEMPLATE.replace("<|im_end|>", "<over>")
    cfg.data.split = SplitConfig(train=1, valid=0, test=0)
    packed = prepare(cfg)
    assert packed.metadata["tokenizer"]["end_of_turn_strings"] == ["<over>"]
    assert any("3 sequences end with '<over>'" in line for line in notes(packed))


def test_keys_that_nobody_reads_are_told(tmp_path: Path) -> None:
    rows = [{"messages": [user(str(n)), assistant("x", mood="calm")], "topic": "sums"} for n in range(5)]
    packed = packed_set(tmp_path, rows)
    assert packed.metadata["sources"][0]["unread"] == {"messages.mood": 5, "topic": 5}
    assert any("topic (5 rows)" in line for line in notes(packed))


@pytest.mark.parametrize("key", ["function_calls", "images"])
def test_speech_that_nobody_reads_rejects_its_row(tmp_path: Path, key: str) -> None:
    rows = [{"messages": [user("a"), assistant("b", **{key: "f(x=1)"})]}, {"messages": TWO}]
    (found,) = rejects(packed_set(tmp_path, rows))
    assert key in found["detail"]


def test_words_for_a_template_that_does_not_read_them(tmp_path: Path) -> None:
    rows = [{"messages": TWO, "chat_template_kwargs": {"xml_tools": ["{}"]}}, {"messages": TWO}]
    (found,) = rejects(packed_set(tmp_path, rows))  # type: ignore[arg-type]
    assert (found["reason"], "xml_tools" in found["detail"]) == ("template_drops", True)
