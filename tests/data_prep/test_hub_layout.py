"""Data sets in the layout that they have on the hub: which files a subset and a split mean, and the recipe's own blend.

Names of files, splits and subsets of the six Nemotron sets are those that public code names: the blend of NVIDIA's Nemotron
recipe (subsets are stems of files) and loaders of other projects (splits; every file under data/).
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.chats import assistant, data_cfg, user, write_jsonl

from sft_hydra.config.compose import compose
from sft_hydra.config.resolve import resolve
from sft_hydra.data_prep.hub_layout import chosen_files
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.sources import Source, files_of, read_rows, sources_of
from sft_hydra.errors import DataError
from sft_hydra.schema.data import DataConfig

NEMOTRON = {  # {set: {split: stem of its file}}
    "Nemotron-Science-v1": {"MCQ": "MCQ", "RQA": "RQA"},
    "Nemotron-Instruction-Following-Chat-v1": {"chat_if": "chat_if", "structured_outputs": "structured_outputs"},
    "Nemotron-Math-Proofs-v1": {"lean": "lean"},
    "Nemotron-SWE-v1": {"r2e_gym": "r2e_gym"},
    "Nemotron-Agentic-v1": {"interactive_agent": "interactive_agent", "tool_calling": "tool_calling"},
    "Nemotron-Competitive-Programming-v1": {
        f"{kind}_part0{part}": f"{kind}.part_0{part}"
        for kind in ("competitive_coding_cpp", "competitive_coding_python", "infinibyte")
        for part in (0, 1)
    },
}


def rows_of_file(stem: str) -> list[dict[str, Any]]:
    """Four rows, two of them for Nano; their metadata differ in type between files and rows, as tools' arguments do."""
    return [
        {
            "uuid": f"{stem}-{number}",
            "messages": [user(f"{stem} {number}?"), assistant(f"Answer {number} of {stem}.")],
            "license": "cc-by-4.0",
            "used_in": [["nano_v3"], ["super_v3"], ["nano_v3", "super_v3"], []][number],
            "metadata": [{"n": 1}, {"n": "one"}, [], None][number],
        }
        for number in range(4)
    ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: `nvidia/<set>` is a folder here."""
    monkeypatch.chdir(tmp_path)
    for name, splits in NEMOTRON.items():
        for stem in splits.values():
            write_jsonl(tmp_path / "nvidia" / name / "data" / f"{stem}.jsonl", rows_of_file(stem))
        files = "".join(f"  - split: {split}\n    path: data/{stem}.jsonl\n" for split, stem in splits.items())
        card = f"---\nlicense: cc-by-4.0\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n# {name}\n"
        (tmp_path / "nvidia" / name / "README.md").write_text(card)
    return tmp_path


def blend_of_the_recipe(with_card: bool) -> dict[str, Any]:
    """Entries as in the recipe's data_blend_raw.json: a name, a path with hf:// and mostly a subset."""
    entries: list[dict[str, Any]] = []
    for name, splits in NEMOTRON.items():
        path = f"hf://nvidia/{name}"
        if len(splits) == 1 and name.endswith("SWE-v1"):
            entries.append({"name": "swe", "path": path})
        else:
            entries += [{"name": f"{name}-{stem}".lower(), "path": path, "subset": stem} for stem in splits.values()]
    return {"datasets": entries}


@pytest.mark.parametrize("card", [True, False])
def test_the_recipes_blend_works_as_it_is(hub: Path, card: bool) -> None:
    if not card:
        for path in hub.rglob("README.md"):
            path.unlink()
    Path("data_blend_raw.json").write_text(json.dumps(blend_of_the_recipe(card)))
    found = sources_of(DataConfig(blend="data_blend_raw.json"))
    stems = [Path(file.path).name.removesuffix(".jsonl") for source in found for file in files_of(source)]
    assert stems == [stem for splits in NEMOTRON.values() for stem in splits.values()]
    cfg = data_cfg(hub / "out")
    cfg.data.blend = "data_blend_raw.json"
    cfg.data.filters.equals = {"used_in": "nano_v3"}
    sources = prepare(cfg).metadata["sources"]
    assert [(source["rows"], source["kept"]) for source in sources] == [(4, 2)] * 14
    assert sources[0]["rejects"] == {"equals": 2}


def test_the_ready_made_source_reads_all_files_of_the_six_sets(hub: Path) -> None:
    composed = compose(["data=nemotron_post_training", f"output_dir={hub / 'out'}", "runner=data_prep"])
    assert composed is not None
    cfg = resolve(composed.config, composed.overrides)
    sources = {source["name"]: source for source in prepare(cfg).metadata["sources"]}
    files = {"science": 2, "instruction_following_chat": 2, "math_proofs": 1, "swe": 1, "agentic": 2}
    assert {name: source["rows"] for name, source in sources.items()} == {
        name: 4 * count for name, count in (files | {"competitive_programming": 6}).items()
    }
    assert all(source["rejects"] == {"equals": source["rows"] // 2} for source in sources.values())


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: train_1M
    path: data/train_1M-*
  - split: test
    path: data/test-*
- config_name: socratic
  data_files: socratic/*.jsonl
---
"""
FILES = [f"data/{split}-0000{n}-of-00002.parquet" for split in ("train", "train_1M", "test") for n in (0, 1)]
FILES += ["socratic/a.jsonl", "extra/b.jsonl.gz", "README.md", "dataset_infos.json"]


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [
        (None, None, FILES[:2]),
        (None, "train_1M", FILES[2:4]),
        ("default", "test", FILES[4:6]),
        ("socratic", None, FILES[6:7]),
        ("test", None, FILES[4:6]),
        ("extra", None, FILES[7:8]),
        ("b", None, FILES[7:8]),
    ],
)
def test_subset_and_split_by_the_card(subset: str | None, split: str | None, expected: list[str]) -> None:
    assert chosen_files(FILES, CARD, subset, split, "x") == expected


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [
        ("main", "train", ["main/train-00000-of-00001-0123456789abcdef.parquet"]),
        ("main", None, ["main/train-00000-of-00001-0123456789abcdef.parquet"]),
        ("main", "test", ["main/test.parquet"]),
        ("infinibyte", None, ["data/infinibyte.part_00.jsonl", "data/infinibyte.part_01.jsonl"]),
        ("infinibyte.part_01", None, ["data/infinibyte.part_01.jsonl"]),
        ("infinibyte", "train", ["data/infinibyte.part_00.jsonl", "data/infinibyte.part_01.jsonl"]),
    ],
)
def test_subset_and_split_by_names_alone(subset: str, split: str | None, expected: list[str]) -> None:
    names = ["main/train-00000-of-00001-0123456789abcdef.parquet", "main/test.parquet"]
    names += ["data/infinibyte.part_00.jsonl", "data/infinibyte.part_01.jsonl", "data/infinite.jsonl"]
    assert chosen_files(names, "", subset, split, "x") == expected


def test_what_is_not_there_is_answered_with_what_is(hub: Path) -> None:
    source = Source("s", DataConfig().default)
    source.config.path, source.config.subset = "hf://nvidia/Nemotron-Agentic-v1", "tool_caling"
    with pytest.raises(DataError, match=r"subset=tool_caling; available: default, interactive_agent, tool_calling"):
        files_of(source)
    source.config.subset = "tool_calling"
    (file,) = files_of(source)
    rows = [row for _, row in read_rows(file, source, 0, None)]
    assert Counter(type(row["metadata"]).__name__ for row in rows) == Counter(("dict", "dict", "list", "NoneType"))
    assert chosen_files(["data.csv"], "", None, None, "x") is None  # what only the library reads
