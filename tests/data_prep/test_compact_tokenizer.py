"""The compact form of a tokenizer.json gives the same ids; the cache is never trusted, and never needed."""

import json
from pathlib import Path
from typing import Any

import fastokens
import orjson
import pytest

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep import compact_tokenizer
from sft_hydra.data_prep.compact_tokenizer import compact_json
from sft_hydra.data_prep.tokenize import ADVERSARIAL


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache, used for files of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compact_tokenizer, "WORTH", 0)
    return tmp_path / "cache" / "sft_hydra" / "compact"


def ids(tokenizer: fastokens.Tokenizer) -> list[bytes]:
    return [bytes(part) for part in tokenizer.encode_batch_flat([*ADVERSARIAL, "The quick brown fox\n" * 9])]


@pytest.fixture
def pairs(bundled: ChatTokenizer, tmp_path: Path) -> Path:
    """The bundled tokenizer with its merges as pairs."""
    spec: dict[str, Any] = json.loads(bundled.file.read_text())
    merges = spec["model"]["merges"]
    spec["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(spec, indent=1))
    return file


def test_it_is_the_same_tokenizer_made_and_from_the_cache(cache: Path, pairs: Path) -> None:
    made = compact_json(pairs)
    assert len(made) < pairs.stat().st_size
    (kept,) = cache.iterdir()
    assert compact_json(pairs) == made == kept.read_text()
    assert ids(fastokens.Tokenizer.from_json_str(made)) == ids(fastokens.Tokenizer.from_file(str(pairs)))


def test_a_damaged_cache_is_not_used(cache: Path, pairs: Path) -> None:
    made = compact_json(pairs)
    (kept,) = cache.iterdir()
    kept.write_text(made.replace("a", "b", 1))
    assert compact_json(pairs) == made == kept.read_text()


def test_a_cache_that_cannot_be_written_is_not_needed(pairs: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    assert '"merges":["' in compact_json(pairs)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "merges": [["a b", "c"]]},
        {"type": "BPE", "merges": ["a b", "ab"]},
        {"type": "BPE", "merges": [["a", "b", "c"]]},
        {"type": "BPE", "merges": [["a", 1]]},
        {"type": "WordPiece", "merges": [["a", "b"]]},
        {"type": "BPE"},
    ],
)
def test_other_models_are_left_as_they_are(cache: Path, tmp_path: Path, model: Any) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(orjson.dumps({"model": model}))
    assert compact_json(file) == file.read_text()
    file.write_text("{broken")
    assert compact_json(file) == "{broken"
    assert not cache.exists()


@pytest.mark.slow
def test_real_tokenizers_are_the_same(cache: Path, real: ChatTokenizer) -> None:
    compact = fastokens.Tokenizer.from_json_str(compact_json(real.file))
    assert ids(compact) == ids(fastokens.Tokenizer.from_file(str(real.file)))
    added = "".join(token.text for token in real.added)
    assert compact.encode(added).ids == real.encode(added)
