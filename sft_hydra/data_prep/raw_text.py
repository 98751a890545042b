"""Raw text rows (`format: text`, continued pretraining): `TextRenderer.sequences`, one document with an end token, every token
supervised.

Documents are packed like conversations: attention does not cross document boundaries.
"""

from typing import Any

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.data_prep.unread import unread_of_row
from sft_hydra.errors import ConfigError, RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import SourceConfig

FORMAT = "text"
ROLE = "text"  # of the one message that a document is


def text_conversation(row: Any, source: SourceConfig, name: str, origin: str) -> Conversation:
    """The document of a row. `name` of the source, `origin` of the row. RowError with reason `text` or `nothing_to_learn`."""
    key = source.text_key or FORMAT
    text = row.get(key) if isinstance(row, dict) else row
    if not isinstance(text, str):
        found = f"{key} is {type(text).__name__}" if isinstance(row, dict) else f"the row is {type(row).__name__}"
        raise RowError("text", f"format=text requires a string under `{key}`; {found}")
    if not text.strip():
        raise RowError("nothing_to_learn", f"{key} is empty")
    meta = row if isinstance(row, dict) else {}
    unread = unread_of_row(meta, {key})
    return Conversation([{"role": ROLE, "content": text}], None, origin, name, meta, unread=unread, is_text=True)


def end_token(tokenizer: ChatTokenizer, source: SourceConfig, name: str) -> str:
    """The control token that ends each document of a source. ConfigError if the tokenizer does not have it."""
    text = source.end_token or tokenizer.special_tokens.get("eos_token")
    known = [token["content"] for token in tokenizer.spec.get("added_tokens", ())]
    if text in known:
        return str(text)
    what = "end_token is not set and the tokenizer has no eos_token" if text is None else f"end_token={text!r}"
    shown = ", ".join(known[:8]) or "none"
    raise ConfigError(f"source {name}: {what}; it must be a control token of the tokenizer, which has {shown}")


class TextRenderer:
    """Renders documents as sequences. `end`: control token after each document, supervised. `opener`: text before each document,
    not supervised (the BOS of the tokenizer, or empty)."""

    def __init__(self, end: str, opener: str = "") -> None:
        self.end = end
        self.opener = opener

    @classmethod
    def of(cls, tokenizer: ChatTokenizer, source: SourceConfig, name: str) -> "TextRenderer":
        """The renderer of one source. Without a chat template the encoder itself adds the BOS. ConfigError as `end_token`."""
        has_bos = tokenizer.template is not None and bool(tokenizer.bos_prefix)
        return cls(end_token(tokenizer, source, name), tokenizer.special_tokens["bos_token"] if has_bos else "")

    def sequences(self, conversation: Conversation) -> list[RenderedSequence]:
        """One sequence: the document and its end token."""
        text = conversation.messages[0]["content"] + self.end
        if self.opener:
            return [RenderedSequence([self.opener, text], [False, True])]
        return [RenderedSequence([text], [True])]
