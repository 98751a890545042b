"""The reference tokenizer with only the part of its vocabulary that some texts need: `reduced_reference(tokenizer, texts)`.

Loading a whole vocabulary takes the reference library a second. Merges of a byte-pair encoding join parts of one word, so
tokens that are not substrings of a word of these texts cannot occur in their encoding.
"""

import re
from typing import Any

import orjson
from tokenizers import Tokenizer

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep.control_tokens import any_of

MOST_PARTS = 4_000_000  # substrings of all words; more take longer than loading the vocabulary


def reduced_reference(tokenizer: ChatTokenizer, texts: list[str]) -> Tokenizer | None:
    """A tokenizer with the reference's ids for these texts; None if the model is not a plain BPE or the texts are too
    long. Only for byte-level tokenizers (`is_byte_level`)."""
    spec: dict[str, Any] = orjson.loads(tokenizer.file.read_bytes())
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        return None
    added = {token["content"]: token["id"] for token in spec.get("added_tokens", ())}
    words = _words({**spec, "model": {**model, "vocab": {}, "merges": []}}, list(added), texts)
    longest = max(map(len, model["vocab"]), default=0)
    if sum(len(word) * min(len(word), longest) for word in words) > MOST_PARTS:
        return None
    parts = {
        word[start:stop]
        for word in words
        for start in range(len(word))
        for stop in range(start + 1, min(len(word), start + longest) + 1)
    }
    vocab = {token: id_ for token, id_ in model["vocab"].items() if token in parts}
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(left, right) for left, right in pairs if left in vocab and right in vocab and left + right in vocab]
    reduced = {**spec, "model": {**model, "vocab": {**vocab, **added}, "merges": merges}}
    backend = Tokenizer.from_str(orjson.dumps(reduced).decode())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _words(spec: dict[str, Any], added: list[str], texts: list[str]) -> set[str]:
    """The words into which the pre-tokenizer splits the texts, in the alphabet of the vocabulary."""
    rules = Tokenizer.from_str(orjson.dumps({**spec, "added_tokens": [], "post_processor": None}).decode())
    pattern = re.compile(any_of(added))
    words: set[str] = set()
    for text in texts:
        for piece in pattern.split(text):
            plain = rules.normalizer.normalize_str(piece) if rules.normalizer else piece
            words.update(word for word, _ in rules.pre_tokenizer.pre_tokenize_str(plain))
    return words
