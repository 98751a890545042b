"""Escaping of control-token text for tokenizers whose texts cannot be encoded in pieces: `WholeGuard.encode`.

The whole text is encoded at once by a copy of the tokenizer whose added tokens are renamed. Control tokens printed by the
template are renamed in the text too, those in message contents are not, and so become ordinary text. Invariant: the ids are
those of a tokenizer that treats control-token text in contents as ordinary text.
"""

import json
import re
import secrets
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sft_hydra.chat.tokenizer import AddedToken, ChatTokenizer
from sft_hydra.data_prep.control_tokens import WORD, any_of
from sft_hydra.errors import RowError

NAME = f"<g{secrets.token_hex(6)}"


class WholeGuard:
    """Encodes whole texts with escaped control-token text, for one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens = {token.text: token for token in tokenizer.added if token.text.strip()}
        self.control = {token.id for token in self.tokens.values()} - {tokenizer.unknown_id}

    def encode(self, chunks: Sequence[str], trained: Sequence[bool]) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of the chunks of a marked text (tokens,), and the index of the chunk of each (tokens,). `trained`: whether each
        chunk is supervised. RowError if a control token cannot be encoded as plain text."""
        renamed: list[str] = []
        count = 0
        for chunk in chunks:
            text, found = self.pattern.subn(lambda match: self._name(self.tokens[match[0]]), chunk)
            renamed.append(text.replace(WORD, ""))
            count += found
        encoding = self.backend.encode("".join(renamed), add_special_tokens=False)
        ids = [self.ids.get(id_, id_) for id_ in encoding.ids]
        kept = sum(id_ in self.ids for id_ in encoding.ids)
        if kept != count or any(id_ in self.control for id_ in encoding.ids if id_ not in self.ids):
            raise RowError(
                "control_text", "contains a control token that cannot be encoded as plain text by this tokenizer"
            )
        return ids, owners(encoding.offsets, renamed, trained)

    def _name(self, token: AddedToken) -> str:
        return f"{NAME}x{token.id}>"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches added tokens as the tokenizer does: the longest, and only whole words for tokens with `single_word`."""
        words = any_of([token.text for token in self.tokens.values() if token.single_word])
        others = any_of([token.text for token in self.tokens.values() if not token.single_word])
        return re.compile(rf"{others}|(?<!\w)(?:{words})(?!\w)")

    @cached_property
    def ids(self) -> dict[int, int]:
        """Id of a renamed token -> id of the original token."""
        found = {self.backend.token_to_id(self._name(token)): token.id for token in self.tokens.values()}
        return {id_: own for id_, own in found.items() if id_ is not None}

    @cached_property
    def backend(self) -> Tokenizer:
        """The tokenizer with renamed added tokens, loaded at first use."""
        spec = json.loads(self.tokenizer.file.read_text(encoding="utf-8"))
        added = [
            {**entry, "content": self._name(self.tokens[entry["content"]])}
            if entry["content"] in self.tokens
            else entry
            for entry in spec["added_tokens"]
        ]
        changed = {**spec, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
        return Tokenizer.from_str(json.dumps(changed))


def owners(offsets: Sequence[tuple[int, int]], chunks: Sequence[str], flags: Sequence[bool]) -> NDArray[np.int64]:
    """Index of the chunk of every token (tokens,). `offsets`: start and stop of each token in the text of all chunks, in
    characters. A token that spans context and a supervised chunk (`flags`) belongs to the latter, unless it covers only
    white space of it."""
    ends = np.cumsum([len(chunk) for chunk in chunks])
    starts = np.array([start for start, _ in offsets], np.int64)
    owner = np.minimum(np.searchsorted(ends, starts, side="right"), len(chunks) - 1)
    stops = np.array([stop for _, stop in offsets], np.int64)
    last = np.minimum(np.searchsorted(ends, np.maximum(stops - 1, starts), side="right"), len(chunks) - 1)
    trained = np.array(flags, bool)
    for token in np.flatnonzero(trained[last] & ~trained[owner]).tolist():
        into = chunks[last[token]][: stops[token] - (ends[last[token] - 1])]
        if into.strip():
            owner[token] = last[token]
    return owner
