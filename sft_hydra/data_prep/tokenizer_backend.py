"""Choice of the tokenizer library of a preparation, and whether it encodes texts in pieces: `choose_backend`.

Invariant: fastokens is used only if it agrees with the reference on adversarial texts, the added tokens, the template and the
first rows of every source; texts are encoded in pieces only if the pieces of the first rows have the ids of the whole text.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from sft_hydra.chat.checks import LearnedWrongError
from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.data_prep.exact_cuts import borders_are_exact, is_byte_level, pieces_are_exact
from sft_hydra.data_prep.plan import Request, first_rows
from sft_hydra.data_prep.raw_text import TextRenderer
from sft_hydra.data_prep.sources import MalformedRow, read_rows
from sft_hydra.data_prep.tokenize import WHOLE, SequenceEncoder, choose_library, start_fast
from sft_hydra.errors import RowError
from sft_hydra.schema.data import DataConfig

ROWS = 16  # of each source
CHARS = 2000  # at most, of each row
ALL_CHARS = 250_000  # about, of all rows


def probe_texts(request: Request, tokenizer: ChatTokenizer) -> list[str]:
    """The template and the beginnings of the first ROWS rows of every source, about ALL_CHARS characters."""
    rows = [_text_of(row) for row in first_rows(request, ROWS)]
    share = min(CHARS, ALL_CHARS // max(len(rows), 1))
    texts = [text for row in rows if _is_unicode(text := row[:share])]
    return [*texts, tokenizer.template or ""]


def probe_sequences(request: Request, tokenizer: ChatTokenizer, data: DataConfig) -> list[RenderedSequence]:
    """The rendered sequences of the first ROWS rows of every source; invalid rows are skipped."""
    renderer = Renderer.of(tokenizer, data)
    found: list[RenderedSequence] = []
    for source, listed in zip(request.sources, request.files, strict=True):
        for _, row in islice(read_rows(listed[0], source, 0, None), ROWS):
            with suppress(RowError, RecursionError, LearnedWrongError):
                if not isinstance(row, MalformedRow):
                    talk = to_conversation(row, source.config, source.name, "")
                    found += (
                        TextRenderer.of(tokenizer, source.config, source.name) if talk.is_text else renderer
                    ).sequences(talk)
    return [sequence for sequence in found if _is_unicode(sequence.text)]


def choose_backend(tokenizer: ChatTokenizer, texts: list[str], sequences: Callable[[], list[RenderedSequence]]) -> str:
    """`fastokens`, `tokenizers`, or WHOLE. `texts`: those to compare both libraries on; `sequences`: returns rendered sequences
    to compare pieces with whole texts. Takes a second for a large vocabulary."""
    cut = tokenizer.spec.get("truncation") or tokenizer.spec.get("padding")  # the reference is used without them
    library = choose_library(tokenizer, None if cut else start_fast(tokenizer), texts)
    if is_byte_level(tokenizer):
        return library
    if not borders_are_exact(tokenizer):
        return WHOLE
    found = sequences()
    batch = SequenceEncoder(tokenizer, library).encode(found)
    pieces = np.split(batch.input_ids, np.cumsum(batch.lengths)[:-1]) if found else []
    return library if pieces_are_exact(tokenizer, found, [piece.tolist() for piece in pieces]) else WHOLE


def _text_of(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=str)
    except RecursionError:  # nested too deeply: the row will be rejected
        return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
