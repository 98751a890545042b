"""The tokenizer.json that encodes as serving does: `served_file(tokenizer, made, texts)`.

transformers' `AutoTokenizer` uses `tokenizer.json` unchanged for some classes, rebuilds it from the vocabulary for others
(`LlamaTokenizer`), and adds tokens that only the config lists. Where these may differ (`may_differ`), `AutoTokenizer` is run in
a separate process, because it loads torch. Invariant: the returned file gives the ids of `AutoTokenizer` on these texts, or
DataError is raised.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.errors import DataError

AS_THEY_ARE = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that use tokenizer.json unchanged
OUR_FAMILIES = (
    "llama",
    "qwen3",
    "qwen3_moe",
    "nemotron_h",
)  # model types for which transformers keeps the configured class
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BUILT = {"Qwen2Tokenizer": ("NFC", QWEN_PATTERN)}  # class -> normalizer and split pattern that it builds
SCRIPT = """
import json, sys
from transformers import AutoTokenizer
request = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(request["folder"], local_files_only=True)
tokenizer.backend_tokenizer.save(request["file"])
print(json.dumps([tokenizer(text, add_special_tokens=False)["input_ids"] for text in request["texts"]]))
"""
SECONDS = 600


def served_file(tokenizer: ChatTokenizer, made: Path, texts: list[str]) -> Path:
    """The tokenizer.json that encodes `texts` as `AutoTokenizer` does: the tokenizer's file, or `made`, which is written then.
    Raises DataError if neither does or if transformers cannot load the tokenizer."""
    _ = tokenizer.backend  # raises DataError for a damaged tokenizer.json
    ids = _ask(tokenizer, made, texts)
    if _encodes(tokenizer.file, texts) == ids and _rules(tokenizer.file) == _rules(made):
        made.unlink()
        return tokenizer.file
    if _encodes(made, texts) != ids:
        raise DataError(
            f"{tokenizer.folder}: transformers' {tokenizer.config.get('tokenizer_class')} encodes differently from "
            "tokenizer.json, and its ids cannot be reproduced. Save the tokenizer again with `AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(folder)`, or set another tokenizer.path."
        )
    return made


def may_differ(tokenizer: ChatTokenizer) -> bool:
    """Whether `AutoTokenizer` may encode differently from this tokenizer.json; False only if it certainly does not."""
    config = tokenizer.config
    name = str(config.get("tokenizer_class") or AS_THEY_ARE[0])
    family = tokenizer.model_type
    if config.get("split_special_tokens") or "auto_map" in config or _names_more(tokenizer):
        return True
    plain = name.removesuffix("Fast")
    if plain in BUILT:
        return family not in (None, *OUR_FAMILIES) or not _is_built(tokenizer, *BUILT[plain])
    return name not in AS_THEY_ARE or family not in (None, *OUR_FAMILIES)


def _names_more(tokenizer: ChatTokenizer) -> bool:
    """Whether the config lists tokens, or flags of tokens, that tokenizer.json does not have."""
    known = {token["content"]: token for token in tokenizer.spec.get("added_tokens", ())}
    if set(tokenizer.special_tokens.values()) - known.keys():
        return True
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = tokenizer.config.get(key) or []
        texts = [entry.get("content") if isinstance(entry, dict) else entry for entry in _values(listed)]
        if set(map(str, texts)) - known.keys():
            return True
    for entry in (tokenizer.config.get("added_tokens_decoder") or {}).values():
        token = known.get(entry.get("content"))
        flags = ("lstrip", "rstrip", "normalized")
        if token is None or any(bool(entry.get(flag)) is not bool(token.get(flag)) for flag in flags):
            return True
    return False


def _values(listed: Any) -> list[Any]:
    return list(listed.values()) if isinstance(listed, dict) else list(listed)


def _is_built(tokenizer: ChatTokenizer, normalizer: str, pattern: str) -> bool:
    """Whether the rules in the file are those that the class builds."""
    spec = tokenizer.spec
    rules = (spec.get("pre_tokenizer") or {}).get("pretokenizers") or [{}, {}]
    first, last = rules[0], rules[-1]
    same = len(rules) == 2 and first.get("pattern") == {"Regex": pattern} and first.get("behavior") == "Isolated"
    bytes_only = last.get("type") == "ByteLevel" and not (last.get("add_prefix_space") or last.get("use_regex"))
    model = spec.get("model", {})
    odd = [model.get(key) for key in ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "dropout")]
    return same and bytes_only and spec.get("normalizer") == {"type": normalizer} and not any(odd)


def _ask(tokenizer: ChatTokenizer, file: Path, texts: list[str]) -> list[list[int]]:
    request = json.dumps({"folder": str(tokenizer.folder), "file": str(file), "texts": texts})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=request, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise DataError(f"{tokenizer.folder}: transformers cannot load this tokenizer ({why})")
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


def _encodes(file: Path, texts: list[str]) -> list[list[int]]:
    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _rules(file: Path) -> str:
    """The parts of a tokenizer.json that decide the ids, as text to compare."""
    spec = json.loads(file.read_text(encoding="utf-8"))
    model = {key: value or None for key, value in spec["model"].items()}
    model["merges"] = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in spec["model"].get("merges") or ()
    ]
    kept = {"model": model, **{key: spec.get(key) for key in ("normalizer", "pre_tokenizer", "added_tokens")}}
    return json.dumps(kept, sort_keys=True)
