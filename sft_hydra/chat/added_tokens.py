"""A tokenizer folder with more tokens than its source: `tokenizer.add_tokens` and `tokenizer.add_special_tokens`.

The folder is temporary and is deleted when the process exits. Its files depend only on the source folder and the tokens, so
all processes of a run have the same tokenizer.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTS = ("additional_special_tokens", "extra_special_tokens")  # of tokenizer_config.json, in transformers 4 and 5


@cache
def folder_with_tokens(source: Path, names: tuple[str, ...], plain: tuple[str, ...], special: tuple[str, ...]) -> Path:
    """A copy of the files `names` of `source`, with the tokens added to the tokenizer. Tokens that exist already keep their id;
    new ones get the next ids, `plain` before `special`."""
    folder = Path(tempfile.mkdtemp(prefix="tokenizer_with_added_tokens_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in names:
        if (source / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.add_tokens([AddedToken(text, normalized=False) for text in plain])
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    backend.save(str(folder / "tokenizer.json"))
    _name_in_config(folder / "tokenizer_config.json", backend, plain, special)
    return folder


def _name_in_config(file: Path, backend: Tokenizer, plain: tuple[str, ...], special: tuple[str, ...]) -> None:
    """Add the tokens to the lists in tokenizer_config.json: some tokenizer classes read added tokens only from there."""
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if isinstance(config.get("added_tokens_decoder"), dict):
        for id_, token in backend.get_added_tokens_decoder().items():
            if token.content in (*plain, *special):
                fields = {flag: getattr(token, flag) for flag in FLAGS}
                config["added_tokens_decoder"][str(id_)] = {"content": token.content, **fields}
    key = next((key for key in LISTS if isinstance(config.get(key), list)), LISTS[0])
    listed = config.get(key) or []
    known = [entry.get("content") if isinstance(entry, dict) else entry for entry in listed]
    if special:
        config[key] = [*listed, *(text for text in special if text not in known)]
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
