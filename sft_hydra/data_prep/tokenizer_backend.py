"""Which library encodes the rows of a preparation: `choose_backend(tokenizer, probe_texts(request, tokenizer))`.

Invariant: fastokens does it only if it agrees with the reference on hard texts, the tokenizer's own tokens, the template and
the first rows of every source.
"""

import json
from typing import Any

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep.plan import Request, first_rows
from sft_hydra.data_prep.tokenize import choose_library, start_fast

ROWS = 16  # of each source
CHARS = 2000  # at most, of each row
ALL_CHARS = 250_000  # about, of all rows


def probe_texts(request: Request, tokenizer: ChatTokenizer) -> list[str]:
    """The template and the beginnings of the first rows of every source."""
    rows = [_text_of(row) for row in first_rows(request, ROWS)]
    share = min(CHARS, ALL_CHARS // max(len(rows), 1))
    texts = [text for row in rows if _is_unicode(text := row[:share])]
    return [*texts, tokenizer.template or ""]


def choose_backend(tokenizer: ChatTokenizer, texts: list[str]) -> str:
    """`fastokens` or `tokenizers`. Takes a second for a large vocabulary."""
    return choose_library(tokenizer, start_fast(tokenizer), texts)


def _text_of(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=str)
    except RecursionError:  # it will be rejected
        return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
