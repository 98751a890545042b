"""The tokenizer of a run with its chat template: `load_tokenizer(cfg)` finds the files, `ChatTokenizer` reads them.

Invariant: the same template text prepares data, prompts the model and is written to the export.
"""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sft_hydra.chat.added_tokens import folder_with_tokens
from sft_hydra.chat.file_hash import file_sha256
from sft_hydra.chat.template import ChatTemplate
from sft_hydra.chat.template_probe import probe_closings
from sft_hydra.chat.template_traits import TemplateTraits, end_of_turn_strings, end_of_turn_texts
from sft_hydra.errors import ConfigError, DataError, TokenizerMismatchError
from sft_hydra.hub import folder_of
from sft_hydra.planning.megatron_checkpoint import torch_dist_folder
from sft_hydra.schema.config import SftConfig

BUNDLED = Path(__file__).resolve().parent.parent / "demo" / "tokenizer"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
TEMPLATE_FILE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"
WITH_TOOLS = "tool_use"  # the named template that transformers uses for conversations with tools
NEW_CLASSES = ("TokenizersBackend", "Qwen3_5Tokenizer")  # only in transformers 5
COMMON_CLASS = "PreTrainedTokenizerFast"  # in transformers 4 and 5; uses tokenizer.json unchanged


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in text before the tokenizer's rules. `special`: a control token. `lstrip`, `rstrip`: it includes
    the white space before or after it. `normalized`: it is matched in normalized text. `single_word`: only at word boundaries."""

    id: int
    text: str
    special: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens of `tokenizer.add_tokens` and `add_special_tokens`, in order."""

    ids: tuple[int, ...] = ()
    known: int = 0
    """Number of ids of the tokenizer without them; ids from here on are new."""


class ChatTokenizer:
    """A tokenizer folder (`tokenizer.json`, `tokenizer_config.json`, ...) and its chat template.

    `template` None: contents are used unchanged. `named`: further templates by name; `tool_use` is used for conversations with
    tools, as in transformers. `file`: a tokenizer.json outside `folder` (served_tokenizer.py)."""

    def __init__(
        self,
        folder: Path,
        template: str | None,
        template_kwargs: dict[str, Any] | None = None,
        file: Path | None = None,
        named: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.template = template
        self.named = dict(named or {})
        self.template_kwargs = dict(template_kwargs or {})
        self.file = file or folder / "tokenizer.json"  # or the one that serving uses (served_tokenizer.py)
        self.config = _read_json(folder / "tokenizer_config.json")
        self.new_tokens = NewTokens()

    @cached_property
    def backend(self) -> Tokenizer:
        """The `tokenizers` tokenizer, loaded at first use. DataError if tokenizer.json is invalid."""
        try:
            backend = Tokenizer.from_file(str(self.file))
        except Exception as problem:  # the library raises bare exceptions
            raise DataError(f"{self.file}: cannot be read as a tokenizer ({problem})") from None
        backend.no_truncation()  # a file may enable both; transformers ignores that too
        backend.no_padding()
        return backend

    def serve_from(self, file: Path) -> None:
        """Switch to another tokenizer.json."""
        self.file = file
        for name in ("backend", "spec", "added", "vocab_size"):
            self.__dict__.pop(name, None)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The content of tokenizer.json without the vocabulary, which is slow to parse."""
        data = self.file.read_bytes()
        head = data[: data.find(b'"vocab"')]
        try:
            return dict(json.loads(head + b'"vocab": {}}}'))
        except (ValueError, RecursionError):  # other order of keys, or a damaged file
            return _read_json(self.file)

    @cached_property
    def model_type(self) -> str | None:
        """`model_type` of the config.json beside the tokenizer; None if there is none."""
        return _read_json(self.folder / "config.json").get("model_type")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of tokenizer.json and of the templates."""
        digest = file_sha256(self.folder / "tokenizer.json")
        digest.update(b"\0template\0" + (self.template or "").encode())
        for name, text in sorted(self.named.items()):
            digest.update(f"\0{name}\0{text}".encode())
        return str(digest.hexdigest())

    @property
    def identity(self) -> tuple[str, str]:
        """What a packed set depends on, to compare: the fingerprint, and the special tokens as JSON."""
        return self.fingerprint, json.dumps(self.special_tokens, sort_keys=True)

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, `pad_token`, `unk_token`, ... of the tokenizer's config (template variables)."""
        fields = {**_read_json(self.folder / "special_tokens_map.json"), **self.config}
        named = {key: _token_text(value) for key, value in fields.items() if key.endswith("_token")}
        return {key: text for key, text in named.items() if text is not None}

    @cached_property
    def added(self) -> list[AddedToken]:
        """All added tokens, ordered by id."""
        decoder = sorted(self.backend.get_added_tokens_decoder().items())
        return [
            AddedToken(i, t.content, t.special, t.lstrip, t.rstrip, t.normalized, t.single_word) for i, t in decoder
        ]

    @property
    def added_tokens(self) -> dict[int, tuple[str, bool]]:
        """Added tokens: id -> (text, special)."""
        return {token.id: (token.text, token.special) for token in self.added}

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids, including added tokens; a model's embedding needs at least as many rows."""
        return max(self.backend.get_vocab_size(), *(token.id + 1 for token in self.added), 0)

    @cached_property
    def unknown_id(self) -> int | None:
        """Id of the token for text outside the vocabulary; None if there is none."""
        model = self.spec.get("model", {})
        text, id_ = model.get("unk_token"), model.get("unk_id")
        return self.backend.token_to_id(text) if isinstance(text, str) else id_ if isinstance(id_, int) else None

    @property
    def eos_id(self) -> int | None:
        """Id of `eos_token`; None if there is none."""
        return self._special_id("eos_token")

    @property
    def bos_id(self) -> int | None:
        """Id of `bos_token`; None if there is none."""
        return self._special_id("bos_token")

    @property
    def pad_id(self) -> int | None:
        """Id of `pad_token`; None if there is none."""
        return self._special_id("pad_token")

    @cached_property
    def end_of_turn_ids(self) -> list[int]:
        """Ids of the tokens that end an assistant turn, found by rendering one; without a template, EOS."""
        if self.template is None:
            return [] if self.eos_id is None else [self.eos_id]
        tokens = [token.text for token in self.added]
        known = {token.text: token.id for token in self.added}
        texts = [text for traits in self._closings for text in end_of_turn_texts(traits, tokens)]
        return [known[text] for text in dict.fromkeys(texts) if text in known]

    @cached_property
    def end_of_turn_strings(self) -> list[str]:
        """Texts that end an assistant turn in the template but are not one token of this tokenizer."""
        tokens = [token.text for token in self.added]
        return list(dict.fromkeys(text for traits in self._closings for text in end_of_turn_strings(traits, tokens)))

    @cached_property
    def _closings(self) -> list[TemplateTraits]:
        """Traits of the templates, with the ends of turns."""
        tokens = [token.text for token in self.added]
        templates = [text for text in (self.template, self.named.get(WITH_TOOLS)) if text is not None]
        return [
            probe_closings(ChatTemplate(text, self.template_variables, datetime.now()), tokens) for text in templates
        ]

    @property
    def template_variables(self) -> dict[str, Any]:
        """Template variables besides the messages: special tokens and the user's `template_kwargs`."""
        kwargs = self.template_kwargs
        return {**self.special_tokens, **kwargs, "chat_template_kwargs": kwargs}

    @property
    def bos_prefix(self) -> list[int]:
        """Ids that the tokenizer adds before a text: [BOS] or []. Templates print their own BOS."""
        return [id_ for id_ in self.backend.encode("", add_special_tokens=True).ids if id_ == self.bos_id]

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text. Control tokens in it are recognized; no BOS or EOS is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, including special tokens."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def save_files(self, folder: Path) -> None:
        """Copy the tokenizer's files to `folder`, with a tokenizer class that transformers 4 and 5 have, and write the template
        to `chat_template.jinja` and, for older versions, to tokenizer_config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        if config.get("tokenizer_class") in (None, *NEW_CLASSES):
            config["tokenizer_class"] = COMMON_CLASS
        if isinstance(config.get("extra_special_tokens"), list):  # transformers 4 expects a mapping here
            config.setdefault("additional_special_tokens", config.pop("extra_special_tokens"))
        if self.template is not None:
            config["chat_template"] = self.template
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if self.template is not None:
            (folder / TEMPLATE_FILE).write_text(self.template)
        for name, text in self.named.items():
            (folder / NAMED_TEMPLATES).mkdir(exist_ok=True)
            (folder / NAMED_TEMPLATES / f"{name}.jinja").write_text(text)

    def _special_id(self, key: str) -> int | None:
        text = self.special_tokens.get(key)
        return None if text is None else self.backend.token_to_id(text)


def grown_vocabulary(cfg: SftConfig, architecture: dict[str, Any], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """The fields of a config.json, with `vocab_size` enlarged for added tokens. TokenizerMismatchError if the tokenizer without
    them has more ids than the model."""
    whole_tables = cfg.peft is not None and cfg.peft.path is not None and cfg.peft.modules_to_save
    size = architecture.get("vocab_size")
    if isinstance(size, int) and (tokenizer.new_tokens.ids or whole_tables):
        return {**architecture, "vocab_size": max(size, tokenizer.vocab_size)}
    check_vocabulary(cfg, architecture, tokenizer)
    return architecture


def check_vocabulary(cfg: SftConfig, architecture: dict[str, Any], tokenizer: ChatTokenizer) -> None:
    """TokenizerMismatchError if the tokenizer has more ids than `vocab_size` of this config.json."""
    size = architecture.get("vocab_size")
    if isinstance(size, int) and size < tokenizer.vocab_size:
        raise TokenizerMismatchError(
            f"tokenizer_mismatch: the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size:,} ids, the model "
            f"{cfg.model.path or cfg.model.name} only {size:,}; set tokenizer.path to the model's tokenizer"
        )


def load_tokenizer(cfg: SftConfig) -> ChatTokenizer:
    """The tokenizer of `tokenizer.path` (else of `model.path`, else the bundled one) with the template of
    `tokenizer.chat_template`. ConfigError or DataError names a missing or invalid file."""
    path = cfg.tokenizer.path or cfg.model.path or "demo"
    folder = BUNDLED if path == "demo" else _folder_of(path, cfg.model.revision if path == cfg.model.path else None)
    folder = torch_dist_folder(folder) or folder
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"tokenizer.path={path}: no tokenizer.json in {folder}. Convert older formats with transformers: "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(folder)`."
        )
    template = _template_of(cfg.tokenizer.chat_template, folder)
    named = named_templates(folder) if cfg.tokenizer.chat_template == "default" else {}
    plain, special = tuple(cfg.tokenizer.add_tokens), tuple(cfg.tokenizer.add_special_tokens)
    if not plain and not special:
        return ChatTokenizer(folder, template, cfg.tokenizer.template_kwargs, named=named)
    known = ChatTokenizer(folder, None).vocab_size
    larger = folder_with_tokens(folder, (*FILES, TEMPLATE_FILE, "config.json"), plain, special)
    tokenizer = ChatTokenizer(larger, template, cfg.tokenizer.template_kwargs, named=named)
    ids = [tokenizer.backend.token_to_id(text) for text in (*plain, *special)]
    tokenizer.new_tokens = NewTokens(tuple(id_ for id_ in ids if id_ is not None), known)
    return tokenizer


def _folder_of(path: str, revision: str | None) -> Path:
    patterns = [*FILES, TEMPLATE_FILE, f"{NAMED_TEMPLATES}/*.jinja", "config.json"]
    return folder_of("tokenizer.path", path, patterns, revision=revision, error=DataError)


def _template_of(choice: str | None, folder: Path) -> str | None:
    if choice is None:
        return None
    if choice == "default":
        return _own_template(folder)
    if any(sign in choice for sign in ("{{", "{%", "\n")):
        return choice
    if choice in (named := named_templates(folder)):
        return named[choice]
    path = Path(choice).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"tokenizer.chat_template={choice}: no such file; use `default`, null, a path or a Jinja text"
        )
    return path.read_text(encoding="utf-8")


def named_templates(folder: Path) -> dict[str, str]:
    """The named templates of a tokenizer, without its `default` one: name -> text. DataError for an invalid entry."""
    found = _listed_templates(folder)
    for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return {name: text for name, text in found.items() if name != "default"}


def _listed_templates(folder: Path) -> dict[str, str]:
    """Named templates in `chat_template` of tokenizer_config.json, if it is a list."""
    listed = _read_json(folder / "tokenizer_config.json").get("chat_template")
    found: dict[str, str] = {}
    for entry in listed if isinstance(listed, list) else ():
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(f"{folder}/tokenizer_config.json: each entry of chat_template needs a name and a template")
        found[name] = text
    return found


def _own_template(folder: Path) -> str:
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    found = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        found = _listed_templates(folder).get("default")
    if not isinstance(found, str):
        names = sorted(named_templates(folder))
        choice = f", one of its named templates ({', '.join(names)})" if names else ""
        raise DataError(
            f"{folder}: this tokenizer has no default chat template. Set "
            f"tokenizer.chat_template=<file or Jinja text>{choice}, or null for texts that are rendered already."
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"{path}: cannot be read ({problem})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: must contain a JSON object, not {type(found).__name__}")
    return found


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
