"""Bad input: whatever a file holds, every line ends as a kept row or as a reject with its place and reason, and the run
goes on; a file that cannot be read is told by name."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chats import TOOL, all_sequences, assistant, call, data_cfg, question, rejects, user, write_jsonl
from support.hostile import DEPTHS, Grammar, write_hostile
from support.hostile_files import broken, files_of

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep import filters
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.errors import UserError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import SourceConfig

TEXT = st.text(st.characters(codec=None), max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FUNCTION = st.fixed_dictionaries(
    {"name": TEXT | VALUE, "arguments": VALUE},
    optional={"tool_name": TEXT | VALUE, "function": TEXT | VALUE, "parameters": VALUE},
)
CALL = st.fixed_dictionaries({}, optional={"id": VALUE, "function": FUNCTION | TEXT, "name": TEXT | VALUE})
PART = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "thinking", "tool_use", "tool_result"]) | VALUE, "text": VALUE}
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | VALUE,
        "content": TEXT | VALUE | st.lists(PART, max_size=3),
    },
    optional={"tool_calls": st.lists(CALL, max_size=2) | VALUE, "reasoning_content": VALUE, "weight": VALUE},
)
ROW = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=4)}, optional={"tools": st.lists(VALUE, max_size=2)}
)


def hostile_cfg(folder: Path, path: Path, tokenizer: str | None = None) -> SftConfig:
    """Every filter is on that looks into rows."""
    cfg = data_cfg(folder, hostile=path)
    cfg.tokenizer.path = tokenizer
    cfg.data.filters.tool_schema = cfg.data.filters.repetition = cfg.data.filters.dedup = True
    return cfg


def check_account(packed: PackedSet, rows: int) -> dict[str, int]:
    """Rows in = kept + rejected, each reject has a place of its own and a reason. Returns the reasons."""
    source = packed.metadata["sources"][0]
    assert source["rows"] == source["kept"] + source["rejected"] == rows
    told = [entry for entry in rejects(packed) if not entry["detail"].startswith("one sequence of")]
    assert Counter(entry["reason"] for entry in told) == source["rejects"]
    assert len({entry["origin"] for entry in told}) == source["rejected"]
    assert not [entry for entry in told if entry["reason"] == "unforeseen"]
    return source["rejects"]


def check_turns(packed: PackedSet, cfg: SftConfig) -> None:
    """No content opened or closed a turn: tokens that open turns and that close them come in pairs, in every sequence."""
    tokenizer = load_tokenizer(cfg)
    opening, closing = (tokenizer.backend.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>"))
    for ids, mask in all_sequences(packed):
        turns = [id_ for id_ in ids if id_ in (opening, closing)]
        assert turns == [opening, closing] * (len(turns) // 2)
        assert 1 in mask


def test_hostile_lines_are_kept_or_rejected(tmp_path: Path) -> None:
    rows = write_hostile(tmp_path / "hostile.jsonl", seed=1, count=2000)
    cfg = hostile_cfg(tmp_path / "out", tmp_path / "hostile.jsonl")
    packed = prepare(cfg)
    reasons = check_account(packed, rows)
    assert {"malformed", "nesting", "unicode", "number", "tools", "role", "content"} <= reasons.keys()
    assert packed.metadata["sources"][0]["kept"] > rows // 5
    check_turns(packed, cfg)


@pytest.mark.reliability
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("tokenizer", ["qwen3", "nemotron3_nano"])
def test_hundred_thousand_hostile_lines(tokenizer: str, shared: Path, tmp_path: Path) -> None:
    for seed in range(10):
        rows = write_hostile(tmp_path / "hostile.jsonl", seed=1000 + seed, count=10_000)
        path = str(shared / "assets" / "tokenizers" / tokenizer)
        cfg = hostile_cfg(tmp_path / f"out{seed}", tmp_path / "hostile.jsonl", path)
        packed = prepare(cfg)
        check_account(packed, rows)
        if tokenizer == "qwen3":  # the other's template closes a first tool message that it did not open
            check_turns(packed, cfg)


def test_workers_agree_about_hostile_lines(tmp_path: Path) -> None:
    write_hostile(tmp_path / "hostile.jsonl", seed=2, count=800)
    found = []
    for workers in (1, 2):
        cfg = hostile_cfg(tmp_path / f"out{workers}", tmp_path / "hostile.jsonl")
        cfg.data.num_workers, cfg.data.num_shards = workers, 3
        packed = prepare(cfg)
        found.append((packed.metadata["sources"], rejects(packed), all_sequences(packed)))
    assert found[0] == found[1]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(ROW | VALUE, min_size=1, max_size=30))
def test_any_json_is_kept_or_rejected(tmp_path: Path, rows: list[Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [])
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, question(1)]))
    cfg = hostile_cfg(tmp_path / "out", path)
    cfg.data.force = True
    packed = prepare(cfg)
    check_account(packed, len(rows) + 1)
    check_turns(packed, cfg)


@pytest.mark.parametrize("depth", DEPTHS)
def test_deep_nesting_anywhere(tmp_path: Path, depth: int) -> None:
    deep = "[" * depth + "1" + "]" * depth
    talk = '{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"'
    lines = [
        f'{{"messages": [{talk}}}], "extra": {deep}}}',
        f'{{"messages": [{talk}}}], "tools": {deep}}}',
        f'{{"messages": [{talk}, "tool_calls": [{{"name": "weather", "arguments": {{"a": {deep}}}}}]}}]}}',
        f'{{"messages": [{talk}, "tool_calls": {deep}}}]}}',
        f'{{"messages": [{talk}}}, {{"role": "tool", "content": {deep}}}]}}',
        deep,
    ]
    path = tmp_path / "deep.jsonl"
    path.write_text("\n".join([*lines, json.dumps(question(1))]) + "\n")
    packed = prepare(hostile_cfg(tmp_path / "out", path))
    check_account(packed, len(lines) + 1)


def test_a_file_that_begins_with_bad_lines(tmp_path: Path) -> None:
    grammar = Grammar(3)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(grammar.nested(900).encode() + b"\r\n" for _ in range(20)))
    with open(path, "ab") as stream:
        stream.write(json.dumps(question(1)).encode())
    check_account(prepare(hostile_cfg(tmp_path / "out", path)), 21)


@pytest.mark.parametrize(("reasoning", "kept"), [(False, 3), (True, 2)])
def test_thousands_of_turns(tmp_path: Path, reasoning: bool, kept: int) -> None:
    """Where each turn needs a text of its own, which would take hours, the row is rejected; else it is one text."""
    thought = {"reasoning_content": "Hm."} if reasoning else {}
    talk = [m for n in range(12_000) for m in (user(f"q{n}"), assistant(f"a{n}", **thought))]
    path = write_jsonl(tmp_path / "long.jsonl", [question(1), {"messages": talk}, question(2)])
    packed = prepare(hostile_cfg(tmp_path / "out", path))
    assert packed.metadata["sources"][0]["kept"] == kept
    assert check_account(packed, 3) == ({"too_many_turns": 1} if reasoning else {})


def test_huge_texts_and_numbers(tmp_path: Path) -> None:
    big = {"messages": [user("Rain?"), call(place=10**4000)], "tools": [TOOL]}
    rows = [question(1), {"messages": [user("x" * 5_000_000), assistant("y")]}, big, question(2)]
    path = write_jsonl(tmp_path / "huge.jsonl", rows)
    path.write_text(path.read_text() + json.dumps(question(3)).replace("What", "9" * 5000).replace('"9', "9") + "\n")
    reasons = check_account(prepare(hostile_cfg(tmp_path / "out", path)), 5)
    assert reasons == {"overlong": 1, "tool_schema": 1, "malformed": 1}


def test_schemas_that_never_end_or_reach_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cycles, a pattern that backtracks for ever, and references to other machines and files, which nobody opens."""
    monkeypatch.setattr(filters, "SCHEMA_SECONDS", 0.2)
    secret = tmp_path / "secret.json"
    secret.write_text('{"required": ["gone"]}')
    bomb: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    schemas = [
        {"$ref": "#"},
        {"type": "object", "$ref": f"file://{secret}"},
        {"type": "object", "$ref": "http://127.0.0.1:9/schema.json"},
        {"type": "object", "properties": {"place": {"pattern": "(a+)+$"}}},
        {"type": "object", "$ref": "#/$defs/d0", "$defs": bomb | {"d40": {"type": "object"}}},
    ]
    rows = [
        {
            "messages": [user(str(number)), call(place="a" * 40 + "!")],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": schema}}],
        }
        for number, schema in enumerate(schemas)
    ]
    packed = prepare(hostile_cfg(tmp_path / "out", write_jsonl(tmp_path / "rows.jsonl", [question(1), *rows])))
    assert check_account(packed, 6) == {"tool_schema": 2}
    assert {entry["origin"][-1] for entry in rejects(packed)} == {"5", "6"}


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=[pytest.mark.reliability, pytest.mark.timeout(1500)])])
def test_broken_files_are_told_by_name(tmp_path: Path, count: int) -> None:
    """Cut off or with flipped bits; what has no checksum of its own may still be readable, and then adds up."""
    chance = random.Random(0)
    files = files_of([question(number) for number in range(300)])
    told, silent = Counter[str](), 0
    for turn in range(count):
        name = chance.choice(list(files))
        path = tmp_path / name
        path.write_bytes(broken(files[name], chance))
        try:
            source = prepare(data_cfg(tmp_path / f"out{turn}", rows=path)).metadata["sources"][0]
        except UserError as problem:
            told[name] += name in str(problem)
            silent += name not in str(problem)
        else:
            assert source["rows"] == source["kept"] + source["rejected"]
    assert not silent
    assert told.keys() >= {"rows.json", "rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"}


def test_cut_off_archives_are_never_taken_for_whole(tmp_path: Path) -> None:
    for name, data in files_of([question(number) for number in range(300)]).items():
        if name.endswith((".gz", ".zst", ".parquet")):
            for cut in range(1, len(data), len(data) // 12):
                (tmp_path / name).write_bytes(data[:cut])
                with pytest.raises(UserError, match=name):
                    prepare(data_cfg(tmp_path / "out", rows=tmp_path / name))


def test_the_malformed_goldens(shared: Path, tmp_path: Path) -> None:
    golden = shared / "goldens" / "nano3"
    cases = [json.loads(line) for line in (golden / "inputs.jsonl").read_text().splitlines()]
    path = tmp_path / "golden.jsonl"
    path.write_text("".join(json.dumps(case["row"]) + "\n" for case in cases))
    cfg = data_cfg(tmp_path / "out", golden=SourceConfig(path=str(path)))
    cfg.tokenizer.path = str(shared / "assets" / "tokenizers" / "qwen3")
    cfg.tokenizer.chat_template = str(golden / "chat_template.jinja")
    cfg.seq_length = 8192
    packed = prepare(cfg)
    reasons = check_account(packed, len(cases))
    assert {"no_messages", "nothing_to_learn", "structure", "tool_arguments", "tool_calls", "tools"} <= reasons.keys()
