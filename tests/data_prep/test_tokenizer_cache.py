"""The verdict on fastokens is kept; the first rows are compared all the same; the reduced reference is the reference."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.chats import data_cfg, question, write_jsonl

from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.data_prep import tokenize
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.reduced_reference import reduced_reference
from sft_hydra.data_prep.tokenize import ADVERSARIAL, choose_library, start_fast
from sft_hydra.data_prep.tokenizer_cache import TokenizerRecord

TEXTS = ["The quick brown fox, 12345 times.", "<|im_start|>user\nné 日本<|im_end|>\n", *ADVERSARIAL]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ChatTokenizer]:
    """The bundled tokenizer, read by nobody so far, and a cache with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda: load_tokenizer(data_cfg(tmp_path))


def test_the_reference_is_not_read_a_second_time(fresh: Callable[[], ChatTokenizer]) -> None:
    first = fresh()
    assert choose_library(first, start_fast(first), TEXTS) == "fastokens"
    for texts in (TEXTS, [*TEXTS, "Other first rows"]):
        second = fresh()
        record = TokenizerRecord.load(second, ADVERSARIAL)
        assert record is not None
        assert (record.added, record.vocab_size) == (first.added, first.vocab_size)
        record.apply(second)
        assert choose_library(second, start_fast(second), texts) == "fastokens"
        assert "backend" not in second.__dict__


def test_other_first_rows_are_compared(fresh: Callable[[], ChatTokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = fresh()
    assert choose_library(tokenizer, start_fast(tokenizer), TEXTS) == "fastokens"
    other = fresh()
    fast = start_fast(other)
    assert fast is not None
    encode = fast.encode
    monkeypatch.setattr(fast, "encode", lambda texts: encode([text.replace("wrong", "w") for text in texts]))
    assert choose_library(other, fast, ["something wrong"]) == "tokenizers"
    assert choose_library(other, fast, ["something right"]) == "fastokens"


@pytest.mark.parametrize("damaged", ["", "{}", '{"agrees": true, "added": 3}', "[" * 100_000])
def test_a_damaged_record_is_made_again(fresh: Callable[[], ChatTokenizer], damaged: str, tmp_path: Path) -> None:
    tokenizer = fresh()
    choose_library(tokenizer, start_fast(tokenizer), TEXTS)
    (file,) = (tmp_path / "cache" / "sft_hydra" / "tokenizers").iterdir()
    whole = file.read_text()
    file.write_text(damaged)
    assert TokenizerRecord.load(tokenizer, ADVERSARIAL) is None
    choose_library(tokenizer, start_fast(tokenizer), TEXTS)
    assert file.read_text() == whole


def test_another_tokenizer_or_version_has_another_record(
    fresh: Callable[[], ChatTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = fresh()
    choose_library(tokenizer, start_fast(tokenizer), TEXTS)
    assert TokenizerRecord.load(tokenizer, [*ADVERSARIAL, "more"]) is None
    monkeypatch.setattr(tokenize.TokenizerRecord.__module__ + ".importlib.metadata.version", lambda name: "0.0")
    assert TokenizerRecord.load(tokenizer, ADVERSARIAL) is None


def test_the_reduced_reference_gives_the_ids_of_the_whole(bundled: ChatTokenizer, real: ChatTokenizer) -> None:
    added = "".join(token.text for token in real.added[:40])
    for tokenizer in (bundled, real):
        texts = [*TEXTS, added, f"it{added}'s 12{added}34", "x" * 300]
        reduced = reduced_reference(tokenizer, texts)
        assert reduced is not None
        assert reduced.get_vocab_size() < tokenizer.vocab_size
        for text in texts:
            assert reduced.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


def test_a_set_prepared_from_the_record_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "rows.jsonl", [question(number) for number in range(20)])
    found = [prepare(data_cfg(tmp_path / name, rows=path)) for name in ("first", "second")]
    shards = [sorted(packed.folder.rglob("*.parquet")) for packed in found]
    assert [file.read_bytes() for file in shards[0]] == [file.read_bytes() for file in shards[1]]
    assert found[0].metadata["tokenizer"]["vocab_size"] == found[1].metadata["tokenizer"]["vocab_size"]
    assert found[0].metadata["tokenizer"]["end_of_turn_ids"] == found[1].metadata["tokenizer"]["end_of_turn_ids"]
