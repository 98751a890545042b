"""Raw text rows: every token trained, an end token, documents apart from each other, pieces of long ones, beside chats."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.chats import all_sequences, data_cfg, question, rejects, write_jsonl

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.document_pieces import split_documents
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.tokenize import TokenBatch
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Overlong, SourceConfig

TEXTS = [
    f"Document {number}. It tells about {word}, and of nothing else.\n\nThe end."
    for number, word in enumerate(["ships", "whales", "rivers", "mills", "clocks", "trams"])
]


def text_cfg(folder: Path, texts: list[str] = TEXTS, **chats: Path) -> SftConfig:
    cfg = data_cfg(folder, **chats)
    path = write_jsonl(folder / "texts.jsonl", [{"text": text} for text in texts])
    cfg.data.sources["texts"] = SourceConfig(path=str(path), format="text")
    return cfg


def by_source(packed: PackedSet) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Ids and stored mask of each sequence, by the name of its source."""
    names = [source["name"] for source in packed.metadata["sources"]]
    found: dict[str, list[tuple[list[int], list[int]]]] = {name: [] for name in names}
    for split in ("train", "valid", "test"):
        for index in range(packed.num_rows(split)):
            row = packed.row(split, index)
            edges = [*row.seq_start_id.tolist(), len(row.input_ids)]
            for start, stop, source in zip(edges, edges[1:], row.source_id.tolist(), strict=False):
                entry = row.input_ids[start:stop].tolist(), row.loss_mask[start:stop].tolist()
                found[names[source]].append(entry)
    return found


def test_documents_are_their_ids_and_an_end_token_all_trained(tmp_path: Path) -> None:
    cfg = text_cfg(tmp_path)
    tokenizer = load_tokenizer(cfg)
    found = by_source(prepare(cfg))["texts"]
    assert sorted(ids for ids, _ in found) == sorted([*tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS)
    for ids, mask in found:  # the mask is rolled: each token but the first is a target
        assert mask == [1] * (len(ids) - 1) + [0]


def test_chats_of_the_same_blend_are_as_without_raw_text(tmp_path: Path) -> None:
    chats = write_jsonl(tmp_path / "chats.jsonl", [question(number) for number in range(20)])
    mixed = by_source(prepare(text_cfg(tmp_path / "mixed", chats=chats)))
    alone = by_source(prepare(data_cfg(tmp_path / "alone", chats=chats)))
    assert len(mixed["texts"]) == len(TEXTS)
    assert sorted(mixed["chats"]) == sorted(alone["chats"])


def test_long_documents_are_cut_so_that_every_token_stays_a_target(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(400))
    cfg = text_cfg(tmp_path, [text, "A short one."])
    cfg.seq_length = 64
    tokenizer = load_tokenizer(cfg)
    assert tokenizer.eos_id is not None
    whole = [*tokenizer.encode(text), tokenizer.eos_id]
    packed = prepare(cfg)
    assert packed.metadata["sources"][0]["cut_documents"] == 1
    pieces = [ids for ids, _ in by_source(packed)["texts"] if len(ids) > 10]
    assert max(map(len, pieces)) == 64
    targets = sorted(token for ids in pieces for token in ids[1:])
    assert targets == sorted(whole[1:])


@pytest.mark.parametrize("longest", [2, 3, 7, 100])
def test_pieces_hold_each_target_once_and_in_order(longest: int) -> None:
    lengths = np.array([1, 2, 7, 8, 30], np.int64)
    ids = np.arange(int(lengths.sum()), dtype=np.int32)
    batch, owners, cut = split_documents(
        TokenBatch(ids, np.ones(len(ids), np.uint8), lengths), np.arange(5, dtype=np.int64), longest
    )
    assert batch.lengths.max() <= longest
    assert cut == (lengths > longest).sum()
    starts = np.cumsum(lengths) - lengths
    parts = np.split(batch.input_ids, np.cumsum(batch.lengths)[:-1])
    for owner, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        own = [part for part, of in zip(parts, owners, strict=True) if of == owner]
        assert [token for part in own for token in part[1:]] == list(range(start + 1, start + length))
        assert own[0][0] == start


def test_overlong_documents_may_be_dropped_instead(tmp_path: Path) -> None:
    cfg = text_cfg(tmp_path, [" ".join(map(str, range(400))), "A short one."])
    cfg.seq_length, cfg.data.overlong = 64, Overlong.drop
    packed = prepare(cfg)
    assert [entry["reason"] for entry in rejects(packed)] == ["overlong"]
    assert len(all_sequences(packed)) == 1


def test_control_token_text_in_a_document_is_ordinary_text(tmp_path: Path) -> None:
    probe = text_cfg(tmp_path)
    tokenizer = load_tokenizer(probe)
    end = tokenizer.special_tokens["eos_token"]
    found = by_source(prepare(text_cfg(tmp_path, [f"They write {end} at the end of a turn."])))["texts"]
    (ids, _) = found[0]
    assert tokenizer.eos_id is not None
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(ids) == f"They write {end} at the end of a turn.{end}"


def test_the_end_token_can_be_chosen_and_must_exist(tmp_path: Path) -> None:
    cfg = text_cfg(tmp_path)
    tokenizer = load_tokenizer(cfg)
    other = next(t for t in tokenizer.added if t.special and t.id != tokenizer.eos_id)
    cfg.data.sources["texts"].end_token = other.text
    assert {ids[-1] for ids, _ in by_source(prepare(cfg))["texts"]} == {other.id}
    cfg.data.sources["texts"].end_token = "<|nowhere|>"
    with pytest.raises(ConfigError, match=r"source texts: end_token='<\|nowhere\|>'"):
        prepare(cfg)


def test_rows_without_a_text_are_named(tmp_path: Path) -> None:
    rows = [{"text": "One."}, {"body": "Two."}, {"text": 3}, {"text": "  "}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    cfg = data_cfg(tmp_path)
    cfg.data.sources["rows"] = SourceConfig(path=str(path), format="text")
    packed = prepare(cfg)
    assert packed.metadata["sources"][0]["rejects"] == {"nothing_to_learn": 1, "text": 2}


def test_a_blend_file_names_the_column_as_peers_do(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"body": text} for text in TEXTS])
    blend = tmp_path / "blend.json"
    entry = {"name": "rows", "path": str(path), "format": "text", "text_field": "body"}
    blend.write_text(json.dumps({"datasets": [entry]}))
    cfg = data_cfg(tmp_path)
    cfg.data.blend = str(blend)
    assert len(all_sequences(prepare(cfg))) == len(TEXTS)


def test_a_row_of_text_among_chats_says_how_to_read_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mixed.jsonl", [question(1), {"text": "Raw."}])
    (entry,) = rejects(prepare(data_cfg(tmp_path, mixed=path)))
    assert entry["reason"] == "no_messages"
    assert "for raw text set the source's format=text" in entry["detail"]
