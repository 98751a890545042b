"""Control-token text in contents, for tokenizers whose texts cannot be encoded in pieces: `WholeGuard.encode`.

The whole text is encoded at once by a copy of the tokenizer whose added tokens have other names: what the template printed
is spelled by these, so that what a content spells is ordinary text. Invariant: ids are those that the tokenizer gives a
text in which the contents' control tokens are no tokens.
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
    """For one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens = {token.text: token for token in tokenizer.added if token.text.strip()}
        self.control = {token.id for token in self.tokens.values()} - {tokenizer.unknown_id}

    def encode(self, chunks: Sequence[str], trained: Sequence[bool]) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of the chunks of a marked text, end to end, and the chunk of each. Raises RowError where that cannot be."""
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
            raise RowError("control_text", "holds a control token that this tokenizer cannot write as ordinary text")
        return ids, owners(encoding.offsets, renamed, trained)

    def _name(self, token: AddedToken) -> str:
        return f"{NAME}x{token.id}>"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds added tokens as the tokenizer does: the longest, and whole words where the token wants these."""
        words = any_of([token.text for token in self.tokens.values() if token.single_word])
        others = any_of([token.text for token in self.tokens.values() if not token.single_word])
        return re.compile(rf"{others}|(?<!\w)(?:{words})(?!\w)")

    @cached_property
    def ids(self) -> dict[int, int]:
        """Id of a renamed token -> id of the token."""
        found = {self.backend.token_to_id(self._name(token)): token.id for token in self.tokens.values()}
        return {id_: own for id_, own in found.items() if id_ is not None}

    @cached_property
    def backend(self) -> Tokenizer:
        """The tokenizer with other names for its added tokens; read when first used."""
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
    """The chunk of every token, of which `offsets` are start and stop in the text of all chunks. A token that reaches from
    context into a supervised chunk (`flags`) belongs to that, unless it holds but white space of it."""
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
