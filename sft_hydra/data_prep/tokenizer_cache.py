"""Cached facts about a tokenizer from earlier preparations, so that the reference library need not load it again:
`TokenizerRecord.load` and `TokenizerRecord.save`.

The record is stored in the user's cache (`$XDG_CACHE_HOME/sft_hydra/tokenizers`) under a hash of tokenizer.json, of the texts that
both libraries were compared on, and of the versions of both libraries. A record that cannot be read is recreated.
"""

import hashlib
import importlib.metadata
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sft_hydra.chat.file_hash import file_sha256
from sft_hydra.chat.tokenizer import AddedToken, ChatTokenizer

LIBRARIES = ("fastokens", "tokenizers")
FORMAT = 1
KEPT = 256  # hashes of texts


@dataclass(slots=True)
class TokenizerRecord:
    """`agrees`: fastokens gives the reference's ids on adversarial texts. `added`: the added tokens. `compared`: hashes of the
    first rows of data sets on which both libraries also agree."""

    agrees: bool
    added: list[AddedToken]
    vocab_size: int
    compared: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, tokenizer: ChatTokenizer, texts: Iterable[str]) -> "TokenizerRecord | None":
        """The record of a tokenizer that was compared on these texts; None if there is none or it is invalid."""
        try:
            entry: dict[str, Any] = json.loads(_file(tokenizer, texts).read_text(encoding="utf-8"))
            added = [AddedToken(**token) for token in entry["added"]]
            return cls(bool(entry["agrees"]), added, int(entry["vocab_size"]), list(map(str, entry["compared"])))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def save(self, tokenizer: ChatTokenizer, texts: Iterable[str]) -> None:
        """Store the record; nothing happens if the cache cannot be written."""
        file = _file(tokenizer, texts)
        entry = {**asdict(self), "compared": self.compared[-KEPT:]}
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entry), encoding="utf-8")
            os.replace(temporary, file)

    def apply(self, tokenizer: ChatTokenizer) -> None:
        """Set the added tokens and vocabulary size of `tokenizer`, which the reference library would otherwise be loaded for."""
        tokenizer.added = self.added
        tokenizer.vocab_size = self.vocab_size


def hash_of(texts: Iterable[str]) -> str:
    """One hash of several texts (32 hex digits), which depends on their boundaries."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()[:32]


def _file(tokenizer: ChatTokenizer, texts: Iterable[str]) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    own = file_sha256(tokenizer.file).hexdigest()
    name = hash_of([str(FORMAT), own, *versions, *texts])
    return Path(base).expanduser() / "sft_hydra" / "tokenizers" / f"{name}.json"
