"""What goes wrong in the reference recipe's preparation, and must not here: one test for each known weakness."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from support.chats import (
    TOOL,
    all_sequences,
    assistant,
    call,
    conversation,
    data_cfg,
    question,
    rejects,
    result,
    sequences,
    shapes,
    system,
    user,
    write_jsonl,
)

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data_prep.blend import train_rows
from sft_hydra.data_prep.filters import Filters
from sft_hydra.data_prep.prepare import open_existing, prepare
from sft_hydra.errors import ConfigError, DataError, RowError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import FilterConfig, Overlong, SourceConfig

Questions = Callable[..., SftConfig]


def questions_file(path: Path, first: int, count: int) -> Path:
    return write_jsonl(path, [question(number) for number in range(first, first + count)])


def nano3(shared: Path) -> Renderer:
    return Renderer((shared / "assets" / "tokenizers" / "nemotron3_nano" / "chat_template.jinja").read_text())


def qwen3(shared: Path) -> Renderer:
    return Renderer((shared / "assets" / "tokenizers" / "qwen3" / "chat_template.jinja").read_text())


def learned(renderer: Renderer, row: object) -> list[str]:
    """The trained chunks of a row, all sequences."""
    found = renderer.sequences(conversation(row))  # type: ignore[arg-type]
    return [chunk for s in found for chunk, trained in zip(s.chunks, s.trained, strict=True) if trained]


def test_w1_another_blend_or_ratio_leaves_no_stale_rows(tmp_path: Path) -> None:
    paths = {name: questions_file(tmp_path / f"{name}.jsonl", 1000 * i, 60) for i, name in enumerate("abc")}
    cfg = data_cfg(tmp_path / "out", **paths)
    cfg.data.packed_dir = str(tmp_path / "packed")
    prepare(cfg)
    del cfg.data.sources["c"]
    cfg.data.split.train, cfg.data.split.valid = 0.9, 0.09
    packed = prepare(cfg)
    assert packed.sources == ["a", "b"]
    assert len(all_sequences(packed)) == 120
    files = {str(path.relative_to(packed.folder)) for path in packed.folder.rglob("*.parquet")}
    assert files == {shard["file"] for shard in packed.metadata["shards"]}


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.chats import data_cfg
from sft_hydra.data_prep.prepare import prepare
cfg = data_cfg(Path(sys.argv[2]), rows=sys.argv[3])
cfg.data.num_shards = 4
prepare(cfg, lambda progress: print("alive", flush=True))
import signal; signal.pause()
"""


def test_w2_a_crash_and_a_quick_rerun_lose_nothing(tmp_path: Path) -> None:
    path = questions_file(tmp_path / "rows.jsonl", 0, 400)
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", KILLED, tests, str(tmp_path / "out"), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"alive\n"  # the first shard is done
        os.kill(process.pid, signal.SIGKILL)
    cfg = data_cfg(tmp_path / "out", rows=path)
    cfg.data.num_shards = 4
    packed = prepare(cfg)
    assert len(all_sequences(packed)) == 400
    assert {shard["source"] for shard in packed.metadata["shards"]} == {0}


def test_w3_rows_are_whatever_parallel_layout_needs_them_to_be(questions: Questions) -> None:
    packed = prepare(questions(50))
    cfg = questions(50)
    cfg.parallel.cp, cfg.parallel.tp = 2, 2
    again = open_existing(cfg)
    assert again is not None  # the layout is no part of the key: rows are not padded, whoever trains does that
    assert again.folder == packed.folder


def test_w4_the_end_of_turn_is_never_taken_for_padding(questions: Questions) -> None:
    packed = prepare(questions(50))
    end = load_tokenizer(questions(1, "other")).end_of_turn_ids[0]
    for ids, mask in sequences(packed):
        last = max(index for index, id_ in enumerate(ids) if id_ == end)
        assert mask[last] == 1
    assert sum(len(ids) for ids, _ in sequences(packed)) == packed.row_tokens("train").sum()


@pytest.mark.parametrize("content", ["<think>\nwhy\n</think>\n\nSo.", "<think>why</think>So.", "why\n</think>\n\nSo."])
def test_w5_inline_reasoning_is_kept(shared: Path, content: str) -> None:
    for renderer in (nano3(shared), qwen3(shared)):
        (text,) = learned(renderer, {"messages": [user("x"), assistant(content)]})
        assert "why" in text
        assert text.endswith("So.<|im_end|>\n")


def test_w6_no_normal_row_is_lost_with_another_template(shared: Path) -> None:
    renderer = qwen3(shared)
    for path in (shared / "assets" / "chat").glob("*.jsonl"):
        for line in path.read_text().splitlines()[:40]:
            assert renderer.sequences(conversation(json.loads(line)))
    (text,) = learned(renderer, {"messages": [user("x"), assistant("y", reasoning_content=" \n")]})
    assert text == "y<|im_end|>\n"


def test_w7_truncation_is_counted_and_never_leaves_nothing_to_learn(tmp_path: Path) -> None:
    long = {"messages": [user("word " * 300), assistant("end")]}
    answer = {"messages": [user("x"), assistant("word " * 300)]}
    cfg = data_cfg(tmp_path, rows=write_jsonl(tmp_path / "rows.jsonl", [long, answer, question(1)]))
    cfg.data.overlong = Overlong.truncate
    packed = prepare(cfg)
    source = packed.metadata["sources"][0]
    assert (source["truncated"], source["rejects"]) == (2, {"truncated": 1})
    assert all(any(mask) for _, mask in all_sequences(packed))


def test_w8_ratios_hold_in_every_source(tmp_path: Path) -> None:
    paths = {f"s{i}": questions_file(tmp_path / f"s{i}.jsonl", 10_000 * i, 200) for i in range(4)}
    cfg = data_cfg(tmp_path / "out", **paths)
    cfg.data.num_shards = 4
    for source in prepare(cfg).metadata["sources"]:
        assert source["conversations"] == {"train": 196, "valid": 2, "test": 2}


def test_w9_a_malformed_line_costs_one_row(tmp_path: Path) -> None:
    path = questions_file(tmp_path / "rows.jsonl", 0, 20)
    path.write_text(path.read_text() + '{"messages": [{"role": "us\n' + json.dumps(question(99)) + "\n")
    packed = prepare(data_cfg(tmp_path / "out", rows=path))
    assert len(all_sequences(packed)) == 21
    assert [entry["origin"].rpartition(":")[2] for entry in rejects(packed)] == ["21"]


def test_w10_sample_counts_rows_of_every_source(tmp_path: Path) -> None:
    paths = {name: questions_file(tmp_path / f"{name}.jsonl", 1000 * i, 150) for i, name in enumerate("ab")}
    cfg = data_cfg(tmp_path / "out", **paths)
    cfg.data.sample = 100
    assert [source["rows"] for source in prepare(cfg).metadata["sources"]] == [100, 100]


def test_w11_unknown_keys_of_a_blend_are_told(tmp_path: Path) -> None:
    blend = tmp_path / "blend.json"
    blend.write_text(json.dumps({"datasets": [{"name": "a", "path": "a.jsonl", "messages_field": "chat"}]}))
    cfg = data_cfg(tmp_path / "out")
    cfg.data.blend = str(blend)
    with pytest.raises(ConfigError, match="messages_field"):
        prepare(cfg)


def test_w12_the_bytes_of_template_and_tokenizer_are_in_the_key(questions: Questions, tmp_path: Path) -> None:
    cfg = questions(20)
    folder = tmp_path / "tokenizer"
    load_tokenizer(cfg).save_files(folder)
    cfg.tokenizer.path = str(folder)
    first = prepare(cfg).folder
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\\n", "<|im_end|>", 1))
    assert open_existing(cfg) is None
    second = prepare(cfg).folder
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"].append(
        {**spec["added_tokens"][0], "id": len(spec["model"]["vocab"]) + 500, "content": "<new>"}
    )
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert open_existing(cfg) is None
    assert first != second


def test_w13_an_inline_template_is_taken_as_one(questions: Questions) -> None:
    cfg = questions(5)
    cfg.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}{#" + "long " * 80 + "#}"
    )
    texts = [load_tokenizer(cfg).decode(list(ids)) for ids, _ in all_sequences(prepare(cfg))]
    assert all(text.startswith("user: What is") for text in texts)
    cfg.tokenizer.chat_template = "no/such/file.jinja"
    with pytest.raises(ConfigError, match="no such file"):
        prepare(cfg)


def test_w14_nothing_without_a_trained_token_is_packed_and_shares_are_told(tmp_path: Path) -> None:
    rows = [{"messages": [user("x")]}, {"messages": [user("x"), assistant("  ")]}, question(1)]
    packed = prepare(data_cfg(tmp_path, rows=write_jsonl(tmp_path / "rows.jsonl", rows)))
    source = packed.metadata["sources"][0]
    assert source["rejects"] == {"nothing_to_learn": 1, "structure": 1}
    assert 0 < source["trained_tokens"] < source["tokens"]


@pytest.mark.parametrize(
    "messages",
    [
        [assistant("first")],
        [system("s"), assistant("first")],
        [user("u"), assistant("a1"), assistant("first")],
        [user("u"), system("late"), assistant("first")],
    ],
)
def test_w15_headers_are_never_trained(shared: Path, messages: list[object]) -> None:
    for renderer in (nano3(shared), qwen3(shared)):
        assert learned(renderer, {"messages": messages})[-1] == "first<|im_end|>\n"


def test_w16_flat_calls_missing_arguments_and_tools_as_text(shared: Path) -> None:
    renderer = nano3(shared)
    for function in (
        {"name": "weather", "arguments": {"place": "Oslo"}},
        {"name": "weather"},
        {"name": "weather", "arguments": ""},
    ):
        row = {"messages": [user("x"), assistant("", tool_calls=[function])], "tools": json.dumps([TOOL])}
        assert "<function=weather>" in learned(renderer, row)[0]


def test_w17_no_python_and_no_arrow_nulls_in_the_text(shared: Path, tmp_path: Path) -> None:
    other = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    }
    rows = [
        {"messages": [user("x"), call(), result("y"), assistant("z")], "tools": [TOOL]},
        {"messages": [user("x"), call(name="f", n=3), result("y"), assistant("z")], "tools": [other]},
    ]
    parquet.write_table(pa.Table.from_struct_array(pa.array(rows)), tmp_path / "rows.parquet")
    cfg = data_cfg(tmp_path / "out", rows=tmp_path / "rows.parquet")
    cfg.tokenizer.path = str(shared / "assets" / "tokenizers" / "nemotron3_nano")
    cfg.seq_length = 1024
    tokenizer = load_tokenizer(cfg)
    for ids, _ in all_sequences(prepare(cfg)):
        assert "None" not in tokenizer.decode(list(ids))
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert learned(nano3(shared), {"messages": [user("x"), {"role": "assistant", "content": parts}]}) == [
        "Hello<|im_end|>\n"
    ]


def test_w18_a_filter_that_drops_everything_is_an_error(questions: Questions) -> None:
    cfg = questions(30)
    cfg.data.filters.equals = {"used_in": "nano_v3"}
    with pytest.raises(DataError, match=r"all 30 rows were rejected \(30 equals\)"):
        prepare(cfg)
    assert FilterConfig().equals == {}  # and nobody's field is asked for by default


def test_w19_shares_can_go_up(tmp_path: Path) -> None:
    paths = {
        "few": questions_file(tmp_path / "few.jsonl", 0, 200),
        "many": questions_file(tmp_path / "many.jsonl", 1000, 1800),
    }
    cfg = data_cfg(tmp_path / "out", **paths)
    cfg.data.sources["few"].weight, cfg.data.sources["many"].weight = 1.0, 1.0
    rows = train_rows(prepare(cfg), cfg)
    assert rows.shares[0].rows > 3 * rows.shares[0].available
    assert rows.shares[0].token_share == pytest.approx(0.5, abs=0.005)


def test_w20_a_random_row_is_read_in_small_groups(questions: Questions) -> None:
    cfg = questions(6000)
    packed = prepare(cfg)
    numbers = np.random.default_rng(0).integers(0, packed.num_rows("train"), 50).tolist()
    began = time.process_time()
    for number in numbers:
        packed._groups.clear()  # as if never read
        packed.row("train", number)
    assert (time.process_time() - began) / len(numbers) < 0.02


def test_w21_many_turns_cost_one_render_each_and_repeat_only_what_serving_needs(shared: Path) -> None:
    turns = [message for n in range(80) for message in (user(f"question {n}"), assistant(f"answer {n}"))]
    renderer = nano3(shared)
    assert renderer.template is not None
    renders = 0
    scan = renderer.template.scan

    def counted(*arguments: object, **options: object) -> object:
        nonlocal renders
        renders += 1
        return scan(*arguments, **options)  # type: ignore[arg-type]

    renderer.template.scan = counted  # type: ignore[method-assign, assignment]
    (found,) = renderer.sequences(conversation({"messages": turns}))
    assert sum(found.trained) == 80
    learning = renders  # the first row of its shape is held against what a server renders
    renderer.sequences(conversation({"messages": turns}))
    assert learning <= 3
    assert renders - learning == 1


def test_w22_no_working_files_are_left(questions: Questions) -> None:
    cfg = questions(100)
    packed = prepare(cfg)
    cfg.data.force = True
    prepare(cfg)
    data = packed.folder.parent
    assert {path.name for path in data.iterdir()} == {packed.folder.name, f"{packed.folder.name}.lock"}
    assert {path.name for path in packed.folder.iterdir()} == {
        "metadata.json",
        "rejects.jsonl",
        "train",
        "valid",
        "test",
    }


def test_w23_a_name_given_twice_is_told(tmp_path: Path) -> None:
    blend = tmp_path / "blend.json"
    blend.write_text(json.dumps({"datasets": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}))
    cfg = data_cfg(tmp_path / "out")
    cfg.data.blend = str(blend)
    with pytest.raises(ConfigError, match="duplicate name 'a'"):
        prepare(cfg)


def test_w24_every_reject_has_a_line(tmp_path: Path) -> None:
    surrogate = '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}\n'
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": []}, {"messages": [user("x")]}, question(1)])
    path.write_text(path.read_text() + surrogate)
    packed = prepare(data_cfg(tmp_path / "out", rows=path))
    source = packed.metadata["sources"][0]
    assert source["rejected"] == len(rejects(packed)) == 3
    assert source["rejects"] == {"no_messages": 1, "structure": 1, "unicode": 1}
    assert source["rows"] == source["kept"] + source["rejected"]


def test_w25_no_mask_bleeds_into_the_next_sequence_in_any_order(questions: Questions) -> None:
    packed = prepare(questions(300))
    for split in ("train", "valid", "test"):
        for index in range(packed.num_rows(split)):
            row = packed.row(split, index)
            ends = np.append(row.seq_start_id[1:], len(row.input_ids)) - 1
            assert not row.loss_mask[ends].any()
            assert all(row.loss_mask[start:end].any() for start, end in zip(row.seq_start_id, ends, strict=True))


def test_w26_null_keys_are_as_good_as_missing(shared: Path) -> None:
    renderer = nano3(shared)
    for row in shapes().values():
        filled = {**row, "messages": [{"name": None, "tool_calls": None, "weight": None, **m} for m in row["messages"]]}
        assert renderer.sequences(conversation(filled)) == renderer.sequences(conversation(row))


def test_filters_on_by_default_reject_only_calls_to_nowhere() -> None:
    filters = Filters(FilterConfig())
    for row in shapes().values():
        filters.check(conversation(row))
    with pytest.raises(RowError, match="undefined tool 'weather'"):
        filters.check(conversation({"messages": [user("x"), call()]}))


def test_sources_by_another_path_of_the_same_bytes_share_a_set(tmp_path: Path) -> None:
    first = questions_file(tmp_path / "one" / "rows.jsonl", 0, 20)
    second = questions_file(tmp_path / "two" / "rows.jsonl", 0, 20)
    made = prepare(data_cfg(tmp_path / "out", rows=SourceConfig(path=str(first))))
    found = open_existing(data_cfg(tmp_path / "out", rows=SourceConfig(path=str(second))))
    assert found is not None
    assert found.folder == made.folder
