"""From rendered sequences to token ids and masks: `SequenceEncoder.encode`, in bulk.

Invariant: the ids of a sequence are those of its whole text, split only where that does not change them (at a control token)
or where inference itself splits (after the generation prompt). fastokens is used only if it gives the same ids as the
`tokenizers` library on test texts; if splitting is not exact (exact_cuts.py) every text is encoded whole (WHOLE). The
library is recorded in metadata.json.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import fastokens
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.data_prep.compact_tokenizer import compact_json
from sft_hydra.data_prep.control_tokens import ControlTokenEscaper
from sft_hydra.data_prep.exact_cuts import is_byte_level
from sft_hydra.data_prep.reduced_reference import reduced_reference
from sft_hydra.data_prep.tokenizer_cache import TokenizerRecord, hash_of
from sft_hydra.data_prep.whole_guard import WholeGuard, owners

ADVERSARIAL = (
    "",
    " ",
    "\n",
    "a",
    "\n\n\n",
    " \n \t ",
    "  two  spaces ",
    "it's 'll we'VE",
    "123456789 1,234.5e-7",
    "naïve café ÀÉÎõü ß",
    "e\u0301 \u1100\u1161 \ufb01",
    "日本語のテキスト、中文，한국어",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪",
    "\u200b\u200d\ufeff\u00a0\u3000",
    "\x00\x01\x1f\x7f",
    "def f(x):\r\n\treturn x**2  # note\r\n",
    "<|im_start|>user\n<|im_end|>\n<think></think> <tool_call>{}</tool_call>",
    "<s></s><unk><pad>[INST]<|endoftext|><|eot_id|>",
    "<|im_end|<|im_start>|im_end|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "𝒜𝓃 𐍈 𠮷",
    "İstanbul ǅ ﬃ Ω",
)


WHOLE = "tokenizers, whole texts"


@dataclass(slots=True)
class TokenBatch:
    """Sequences end to end: `input_ids` and `loss_mask` (tokens,), `lengths` (sequences,)."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    lengths: NDArray[np.int64]


class BulkEncoder:
    """Encodes many texts to one flat array of ids. `library` is `fastokens`, `tokenizers` or WHOLE."""

    def __init__(self, tokenizer: ChatTokenizer, library: str) -> None:
        self.tokenizer = tokenizer
        self.fast: fastokens.Tokenizer | None = None
        if library == "fastokens":
            with _reading:  # a second thread waits for the same tokenizer
                self.fast = _load_fast(str(tokenizer.file), tokenizer.file.stat().st_mtime_ns)

    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of all texts end to end (tokens,), and the offset of each text (texts + 1,)."""
        if self.fast is not None:
            ids, offsets = self.fast.encode_batch_flat(texts)
            return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64)
        rows = [encoding.ids for encoding in self.tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return np.fromiter((id_ for row in rows for id_ in row), np.int32, int(offsets[-1])), offsets


_reading = Lock()


@lru_cache(maxsize=1)
def _load_fast(file: str, stamp: int) -> fastokens.Tokenizer:
    return fastokens.Tokenizer.from_json_str(compact_json(Path(file)))


def forget_tokenizers() -> None:
    """Drop the cached fastokens tokenizer, so that it is loaded again (for benchmarks)."""
    _load_fast.cache_clear()


def start_fast(tokenizer: ChatTokenizer) -> BulkEncoder | None:
    """An encoder with fastokens; None if it does not support this tokenizer."""
    try:
        return BulkEncoder(tokenizer, "fastokens")
    except Exception:  # unsupported formats raise various exceptions
        return None


def choose_library(tokenizer: ChatTokenizer, fast: BulkEncoder | None, texts: Iterable[str]) -> str:
    """`fastokens` if it gives the same ids as the reference on ADVERSARIAL, on every added token and on `texts`, else
    `tokenizers`. Results of earlier comparisons are cached (tokenizer_cache.py). `fast`: None if not supported."""
    if fast is None:
        return "tokenizers"
    texts = list(texts)
    record = TokenizerRecord.load(tokenizer, ADVERSARIAL)
    if record is None:
        added = [token.text for token in tokenizer.added]
        hard = [*ADVERSARIAL, "".join(added), " x\n".join(added)]
        agrees = _agree(fast, tokenizer.backend, hard)
        record = TokenizerRecord(agrees, tokenizer.added, tokenizer.vocab_size)
        record.save(tokenizer, ADVERSARIAL)
    if not record.agrees:
        return "tokenizers"
    if (name := hash_of(texts)) in record.compared:
        return "fastokens"
    if not _agree_on_rows(tokenizer, fast, texts):
        return "tokenizers"
    record.compared.append(name)
    record.save(tokenizer, ADVERSARIAL)
    return "fastokens"


def _agree_on_rows(tokenizer: ChatTokenizer, fast: BulkEncoder, texts: list[str]) -> bool:
    """True if both libraries give the same ids; the reference loads only the needed part of its vocabulary if possible."""
    if "backend" not in tokenizer.__dict__ and is_byte_level(tokenizer):
        reduced = reduced_reference(tokenizer, texts)
        if reduced is not None and _agree(fast, reduced, texts):
            return True
    return _agree(fast, tokenizer.backend, texts)


def _agree(fast: BulkEncoder, reference: Tokenizer, texts: list[str]) -> bool:
    try:
        ids, offsets = fast.encode(texts)
    except Exception:  # unsupported texts raise various exceptions
        return False
    want = reference.encode_batch_fast(texts, add_special_tokens=False)
    return all(ids[offsets[i] : offsets[i + 1]].tolist() == want[i].ids for i in range(len(texts)))


class SequenceEncoder:
    """Encodes rendered sequences with `library`. `prefix`: ids put before every sequence (the BOS, where the template does not
    print it)."""

    def __init__(self, tokenizer: ChatTokenizer, library: str, prefix: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.bulk = BulkEncoder(tokenizer, library)
        fast = self.bulk.fast
        self.whole = library == WHOLE
        self.guard = ControlTokenEscaper(
            tokenizer, None if fast is None else lambda text: fast.encode_ordinary(text).ids
        )
        self.whole_guard = WholeGuard(tokenizer)
        self.byte_level = is_byte_level(tokenizer)
        self.prefix = list(prefix)
        self.openers = tuple(t.text for t in tokenizer.added if not (t.lstrip or t.normalized))
        self.closers = tuple(t.text for t in tokenizer.added if not (t.rstrip or t.normalized))
        self.seen_openers: tuple[str, ...] = ()  # those seen so far, tried first: there may be a thousand
        self.seen_closers: tuple[str, ...] = ()
        starts = [self.bulk.encode([f"\n{word}", "\n", word]) for word in ("x", "X", "1", "é", "日", "(", "'")]
        self.cuts_freely = all(ids[: offsets[1]].tolist() == ids[offsets[1] :].tolist() for ids, offsets in starts)

    def encode(self, sequences: Sequence[RenderedSequence]) -> TokenBatch:
        """The tokens of all sequences, in order. RowError only for guarded ones (with escaped control-token text), which callers
        check first with `check_guarded`."""
        texts: list[str] = []
        flags: list[bool] = []
        counts: list[int] = []
        odd: dict[int, tuple[list[int], list[int]]] = {}
        for index, sequence in enumerate(sequences):
            if self.whole or sequence.guarded or self.prefix or not self._cuts_are_exact(sequence):
                odd[index] = self._encode_one(sequence)
                counts.append(0)
            else:
                texts += sequence.chunks
                flags += sequence.trained
                counts.append(len(sequence.chunks))
        ids, offsets = self.bulk.encode(texts)
        mask = np.repeat(np.array(flags, np.uint8), np.diff(offsets))
        ends = offsets[np.cumsum([0, *counts])]
        if not odd:
            return TokenBatch(ids, mask, np.diff(ends))
        parts = [odd.get(i) or (ids[ends[i] : ends[i + 1]], mask[ends[i] : ends[i + 1]]) for i in range(len(sequences))]
        return TokenBatch(
            np.concatenate([np.asarray(part[0], np.int32) for part in parts]),
            np.concatenate([np.asarray(part[1], np.uint8) for part in parts]),
            np.array([len(part[0]) for part in parts], np.int64),
        )

    def check_guarded(self, sequence: RenderedSequence) -> None:
        """RowError if the control-token text of a guarded sequence cannot be encoded as plain text."""
        self._encode_one(sequence)

    def _cuts_are_exact(self, sequence: RenderedSequence) -> bool:
        chunks, trained = sequence.chunks, sequence.trained
        for i in range(1, len(chunks)):
            starts_turn = trained[i] and not trained[i - 1] and self.cuts_freely
            if not starts_turn and not self._is_cut(chunks[i - 1], chunks[i]):
                return False
        return True

    def _is_cut(self, left: str, right: str) -> bool:
        """True if a control token is at the boundary of two chunks, so that tokens cannot merge across it."""
        if right.startswith(self.seen_openers) or left.endswith(self.seen_closers):
            return True
        if right.startswith(self.openers):
            self.seen_openers += tuple(text for text in self.openers if right.startswith(text))
            return True
        if left.endswith(self.closers):
            self.seen_closers += tuple(text for text in self.closers if left.endswith(text))
            return True
        return False

    def _encode_one(self, sequence: RenderedSequence) -> tuple[list[int], list[int]]:
        ids, mask = list(self.prefix), [0] * len(self.prefix)
        if sequence.guarded and self.byte_level and self._cuts_are_exact(sequence):
            for chunk, trained in zip(sequence.chunks, sequence.trained, strict=True):
                part = self.guard.encode(chunk)
                ids += part
                mask += [int(trained)] * len(part)
            return ids, mask
        for chunks, flags in self._pieces(sequence):
            if sequence.guarded:
                found, owner = self.whole_guard.encode(chunks, flags)
                ids += found
                mask += np.array(flags, np.uint8)[owner].tolist()
                continue
            encoding = self.tokenizer.backend.encode("".join(chunks), add_special_tokens=False)
            ids += encoding.ids
            mask += np.array(flags, np.uint8)[owners(encoding.offsets, chunks, flags)].tolist()
        return ids, mask

    def _pieces(self, sequence: RenderedSequence) -> list[tuple[list[str], list[bool]]]:
        """Chunks that must be encoded together."""
        pieces: list[tuple[list[str], list[bool]]] = []
        if self.whole:
            return [(sequence.chunks, sequence.trained)]
        for chunk, trained in zip(sequence.chunks, sequence.trained, strict=True):
            if pieces:
                before = pieces[-1]
                starts_turn = trained and not before[1][-1] and self.cuts_freely
                if not starts_turn and not self._is_cut(before[0][-1], chunk):
                    before[0].append(chunk)
                    before[1].append(trained)
                    continue
            pieces.append(([chunk], [trained]))
        return pieces
