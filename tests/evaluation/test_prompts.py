"""Prompts and tools that users give are read, or refused with their place named."""

import json

import pytest

from sft_hydra.errors import DataError
from sft_hydra.evaluation.prompts import load_tools, read_prompts


def test_prompt_files_of_all_kinds(tmp_path):
    rows = [
        {"prompt": "One"},
        {"messages": [{"role": "user", "content": "Two"}, {"role": "assistant", "content": "gone"}], "tools": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.txt").write_text("One\n\nTwo\n")
    for name in ("a.jsonl", "b.txt"):
        found = [conversation.messages for conversation in read_prompts(str(tmp_path / name))]
        assert found == [[{"role": "user", "content": "One"}], [{"role": "user", "content": "Two"}]]


def test_bad_prompt_files_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "One"}\n{"messages": [{"role": "assistant", "content": "Hi"}]}\n')
    with pytest.raises(
        DataError, match=r"generate.prompt_file: .*a.jsonl:2: all messages are answers of the assistant"
    ):
        list(read_prompts(str(path)))
    with pytest.raises(DataError, match="no such file"):
        list(read_prompts(str(tmp_path / "none.txt")))


def test_tools(tmp_path):
    bundled = load_tools("demo")
    assert bundled.execute is not None
    assert bundled.execute("calc", {"a": 2, "op": "*", "b": 21}) == "42"
    path = tmp_path / "tools.json"
    path.write_text('[{"type": "function", "function": {"name": "calc"}}]')
    own = load_tools(str(path))
    assert own.definitions is not None
    assert own.definitions[0]["function"]["name"] == "calc"
    assert own.execute is None
    assert load_tools(None).definitions is None
    path.write_text('{"name": "calc"}')
    with pytest.raises(DataError, match="list of tool definitions"):
        load_tools(str(path))
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load_tools(str(tmp_path / "none.json"))
