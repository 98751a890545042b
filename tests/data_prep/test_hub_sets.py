"""Well-known data sets, read through the real loading code from a local repository of their hub schema."""

from pathlib import Path
from typing import Any

import pytest
from support.chats import assistant, data_cfg, system, user, write_jsonl

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.sources import Source, files_of, read_rows, sources_of
from sft_hydra.errors import ConfigError, DataError, RowError
from sft_hydra.schema.data import DataConfig, SourceConfig


def hub(folder: Path, rows: list[Any], subset: str = "main", split: str = "train") -> str:
    """A data set repository with one file."""
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n  - split: {split}\n    path: rows.jsonl\n---\n"
    )
    return str(folder)


def chats_of(path: str, **options: Any) -> list[Any]:
    source = Source("s", SourceConfig(path=path, **options))
    found = read_rows(files_of(source)[0], source, 0, None)
    return [to_conversation(row, source.config, "s", "s:1").messages for _, row in found]


QUESTION = {
    "question": "Which is a fruit?",
    "subject": "food",
    "choices": ["stone", "apple", "car", "sea"],
    "answer": 1,
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_mmlu(tmp_path: Path, wrapped: bool) -> None:
    rows = [{"train": QUESTION} if wrapped else QUESTION]
    ((asked, answered),) = chats_of(hub(tmp_path, rows), subset="main", split="train", format="mmlu")
    assert asked["content"].startswith("Which is a fruit?\n\nA. stone\nB. apple\n")
    assert answered == assistant("B")


def test_gsm8k(tmp_path: Path) -> None:
    row = {"question": "Two and two?", "answer": "It is 2+2 = <<2+2=4>>4.\n#### 4"}
    assert chats_of(hub(tmp_path, [row]), subset="main", split="train", format="gsm8k") == [
        [user("Two and two?"), assistant("It is 2+2 = 4.\n#### 4")]
    ]


def test_squad(tmp_path: Path) -> None:
    row = {"id": "1", "title": "T", "context": "Oslo is in Norway.", "question": "Where is Oslo?"}
    row["answers"] = {"text": ["Norway", "in Norway"], "answer_start": [11, 8]}  # type: ignore[assignment]
    found = chats_of(hub(tmp_path, [row]), subset="main", split="train", format="squad")
    assert found == [[system("Oslo is in Norway."), user("Where is Oslo?"), assistant("Norway")]]


def node(id: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    return {"message_id": id, "parent_id": parent, "message_tree_id": id[0], "role": role, "text": text, "rank": rank}


FLAT = [
    node("a", None, "prompter", "Hi"),
    node("a1", "a", "assistant", "Go away", 1),
    node("a2", "a", "assistant", "Hello", 0),
    node("a3", "a2", "prompter", "Thanks"),
    node("b", None, "prompter", "Bye"),
    node("b1", "b", "assistant", "See you", None),
    node("b2", "b1", "prompter", "When?"),
    node("b3", "b2", "assistant", "Soon", None),
]
TREE = {"prompt": {"role": "prompter", "text": "Hi", "replies": [
    {"role": "assistant", "text": "Go away", "rank": 1, "replies": []},
    {"role": "assistant", "text": "Hello", "rank": 0, "replies": [{"role": "prompter", "text": "Thanks", "replies": []}]},
]}}  # fmt: skip
FIRST = [user("Hi"), assistant("Hello")]
SECOND = [user("Bye"), assistant("See you"), user("When?"), assistant("Soon")]


def test_oasst_flat_and_as_trees(tmp_path: Path) -> None:
    assert chats_of(hub(tmp_path / "flat", FLAT), subset="main", split="train", format="oasst") == [FIRST, SECOND]
    assert chats_of(str(write_jsonl(tmp_path / "trees.jsonl", [TREE])), format="oasst") == [FIRST]


def test_oasst_trees_are_whole_in_any_number_of_shards(tmp_path: Path) -> None:
    rows = [
        dict(row, message_id=f"{n}{row['message_id']}", parent_id=row["parent_id"] and f"{n}{row['parent_id']}")
        for n in range(9)
        for row in FLAT
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for shards in (1, 2, 5, 7):
        cfg = data_cfg(tmp_path / str(shards), oasst=SourceConfig(path=str(path), format="oasst"))
        cfg.data.num_shards = shards
        source = prepare(cfg).metadata["sources"][0]
        assert (source["rows"], source["kept"]) == (18, 18)


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("mmlu", {"question": "x", "choices": ["a"], "answer": 4}),
        ("mmlu", {"question": "x"}),
        ("gsm8k", {"question": "x", "answer": None}),
        ("squad", {"question": "x", "context": "y", "answers": {"text": []}}),
        ("oasst", {"text": "x"}),
    ],
)
def test_rows_of_another_schema_are_rejected(format: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=format if format != "gsm8k" else "answer"):
        to_conversation(row, SourceConfig(format=format), "s", "s:1")


def test_openmathinstruct_and_tulu_need_only_their_keys(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "generated_solution": "2", "expected_answer": "2", "problem_source": "x"}
    options = {"format": "prompt_completion", "input_key": "problem", "output_key": "generated_solution"}
    assert chats_of(hub(tmp_path / "m", [row], "main", "train_1M"), subset="main", split="train_1M", **options) == [
        [user("1+1?"), assistant("2")]
    ]
    row = {"id": "1", "messages": FIRST, "source": "x"}  # type: ignore[dict-item]
    assert chats_of(hub(tmp_path / "t", [row]), subset="main", split="train") == [FIRST]
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert chats_of(hub(tmp_path / "p", [{"uuid": "1", "conversations": turns}]), subset="main", split="train") == [
        FIRST
    ]


def test_prompts_from_files_and_shared_defaults(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Solve: {}\n")
    (tmp_path / "system.txt").write_text("Be exact.")
    path = str(write_jsonl(tmp_path / "rows.jsonl", [{"q": "1+1", "a": "2"}]))
    data = DataConfig(
        sources={"one": SourceConfig(path=path), "two": SourceConfig(path=path, output_key="a", prompt="Now {}!")},
        default=SourceConfig(input_key="q", output_key="a", prompt_file=str(tmp_path / "prompt.txt")),
    )
    data.default.system_prompt_file = str(tmp_path / "system.txt")
    first, second = sources_of(data)
    row = {"q": "1+1", "a": "2"}
    assert to_conversation(row, first.config, "s", "s:1").messages == [
        system("Be exact."),
        user("Solve: 1+1\n"),
        assistant("2"),
    ]
    assert to_conversation(row, second.config, "s", "s:1").messages[1] == user("Now 1+1!")
    data.default.prompt_file = "missing.txt"
    with pytest.raises(ConfigError, match=r"prompt_file=missing\.txt cannot be read"):
        sources_of(data)


def test_a_source_goes_back_to_the_usual_value(tmp_path: Path) -> None:
    """Written out it wins over the default, and an empty text is none."""
    path = str(write_jsonl(tmp_path / "rows.jsonl", [{"messages": FIRST}]))
    written = SourceConfig(
        path=path, messages_key="messages", tools_key="tools", format="auto", system_prompt="", epochs=2
    )
    data = DataConfig(
        sources={"written": written, "left": SourceConfig(path=path)},
        default=SourceConfig(
            messages_key="turns", tools_key="functions", format="sharegpt", system_prompt="Hi.", weight=2
        ),
    )
    back, left = (source.config for source in sources_of(data))
    assert (back.messages_key, back.tools_key, back.format, back.system_prompt) == ("messages", "tools", "auto", None)
    assert (back.weight, back.epochs) == (None, 2)
    assert (left.messages_key, left.tools_key, left.format, left.system_prompt) == (
        "turns",
        "functions",
        "sharegpt",
        "Hi.",
    )
    assert left.weight == 2


def test_spelling_is_made_here_and_right(tmp_path: Path) -> None:
    for part, size in (("simple_spelling", 200_000), ("spelling_bee", 80_000)):
        source = Source("s", SourceConfig(path=f"builtin:{part}"))
        (file,) = files_of(source)
        found = dict(read_rows(file, source, size - 300, None))
        assert sorted(found) == list(range(size - 300, size))
        assert found[size - 5] == dict(read_rows(file, source, size - 5, size - 4))[size - 5]
        for row in found.values():
            asked, answered = (message["content"] for message in row["messages"])
            if part == "simple_spelling":
                word, letters = answered.split(": ")
                assert letters.split(", ") == list(word)
                assert word in asked
            else:
                letter = answered.partition("each ")[2][0]
                word = answered.partition("letters of ")[2].partition(",")[0]
                assert answered.endswith(f"The answer is {word.count(letter)}.")
                assert word in asked
    with pytest.raises(DataError, match="builtin:chess does not exist"):
        prepare(data_cfg(tmp_path, x=SourceConfig(path="builtin:chess")))


def test_a_sample_of_made_rows_goes_all_the_way(tmp_path: Path) -> None:
    cfg = data_cfg(tmp_path, spelling=SourceConfig(path="builtin:simple_spelling"))
    cfg.data.sample = 100
    packed = prepare(cfg)
    assert packed.metadata["sources"][0]["kept"] == 100
    assert load_tokenizer(cfg).vocab_size > packed.row("train", 0).input_ids.max()
