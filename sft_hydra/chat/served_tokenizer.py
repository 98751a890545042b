"""The tokenizer that serving will have: `served_file(tokenizer, made, texts)`.

`AutoTokenizer` takes `tokenizer.json` as it is for some classes and builds its own from the vocabulary for others
(`LlamaTokenizer`), and adds tokens that only the config names. Where that may be, transformers is asked in a process of its
own, because it loads torch. Invariant: the file that encodes gives the ids of `AutoTokenizer` on these texts, or it is a
DataError.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.errors import DataError

AS_THEY_ARE = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that take tokenizer.json as it is
OUR_FAMILIES = ("llama", "qwen3", "qwen3_moe", "nemotron_h")  # for which transformers does not choose another class
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BUILT = {"Qwen2Tokenizer": ("NFC", QWEN_PATTERN)}  # classes that build the same: normalizer and pattern
SCRIPT = """
import json, sys
from transformers import AutoTokenizer
asked = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(asked["folder"], local_files_only=True)
tokenizer.backend_tokenizer.save(asked["file"])
print(json.dumps([tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked["texts"]]))
"""
SECONDS = 600


def served_file(tokenizer: ChatTokenizer, made: Path, texts: list[str]) -> Path:
    """The tokenizer.json that encodes as `AutoTokenizer` does: the tokenizer's own, or `made`, which is written. Raises
    DataError if there is none."""
    _ = tokenizer.backend  # a damaged tokenizer.json is named by its own reader
    ids = _ask(tokenizer, made, texts)
    if _encodes(tokenizer.file, texts) == ids and _rules(tokenizer.file) == _rules(made):
        made.unlink()
        return tokenizer.file
    if _encodes(made, texts) != ids:
        raise DataError(
            f"{tokenizer.folder}: transformers' {tokenizer.config.get('tokenizer_class')} gives other ids than its own "
            "tokenizer.json, and they cannot be reproduced. Save it again with `AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(folder)`, or give another tokenizer.path."
        )
    return made


def may_differ(tokenizer: ChatTokenizer) -> bool:
    """False if transformers surely takes this tokenizer.json as it is."""
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
    """True if the config names tokens, or flags of tokens, that tokenizer.json does not have."""
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
    """True if the file's own rules are those that the class builds."""
    spec = tokenizer.spec
    rules = (spec.get("pre_tokenizer") or {}).get("pretokenizers") or [{}, {}]
    first, last = rules[0], rules[-1]
    same = len(rules) == 2 and first.get("pattern") == {"Regex": pattern} and first.get("behavior") == "Isolated"
    bytes_only = last.get("type") == "ByteLevel" and not (last.get("add_prefix_space") or last.get("use_regex"))
    model = spec.get("model", {})
    odd = [model.get(key) for key in ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "dropout")]
    return same and bytes_only and spec.get("normalizer") == {"type": normalizer} and not any(odd)


def _ask(tokenizer: ChatTokenizer, file: Path, texts: list[str]) -> list[list[int]]:
    asked = json.dumps({"folder": str(tokenizer.folder), "file": str(file), "texts": texts})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=asked, capture_output=True, text=True, timeout=SECONDS, check=False
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
    """All of a tokenizer.json but what comes after the ids are known."""
    spec = json.loads(file.read_text(encoding="utf-8"))
    model = {key: value or None for key, value in spec["model"].items()}
    model["merges"] = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in spec["model"].get("merges") or ()
    ]
    kept = {"model": model, **{key: spec.get(key) for key in ("normalizer", "pre_tokenizer", "added_tokens")}}
    return json.dumps(kept, sort_keys=True)
