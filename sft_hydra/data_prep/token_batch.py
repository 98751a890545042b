"""From rendered rows of a shard to its token store: `TokenBatcher` collects and encodes them, `StoreWriter.fill` writes the
tokens.

Defines what happens to sequences longer than seq_length: they are truncated or dropped as configured, and everything dropped
is counted and written to rejects.jsonl.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.data_prep.document_pieces import split_documents
from sft_hydra.data_prep.plan import Plan
from sft_hydra.data_prep.raw_text import FORMAT
from sft_hydra.data_prep.sources import Source
from sft_hydra.data_prep.token_store import ROW, TokenStoreWriter
from sft_hydra.data_prep.tokenize import SequenceEncoder, TokenBatch
from sft_hydra.errors import DataError, RowError
from sft_hydra.schema.data import Overlong

TEMPLATE_REASONS = ("template", "template_drops", "template_tools", "turn_not_located", "end_of_turn", "reasoning")
SHOWN = 120  # characters of a template's error message
Counts = tuple[int, int, int, int]  # rows, tokens, supervised tokens, rejects


@dataclass(slots=True)
class TokenBatcher:
    """Rows that are encoded together. `owners[i]`: index into `rows` of the row of sequence i; `chars`: length of all texts;
    `read`: rows that were read, including rejected ones."""

    sequences: list[RenderedSequence] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    rows: list[tuple[int, int, int, str]] = field(default_factory=list)  # hash, range, number, origin
    rejects: list[tuple[str, str, str]] = field(default_factory=list)  # origin, reason, detail
    unread: Counter[str] = field(default_factory=Counter)  # unread keys -> rows
    chars: int = 0
    read: int = 0

    def add(self, place: tuple[int, int, int, str], sequences: list[RenderedSequence]) -> None:
        """Add the sequences of one row. `place`: its content hash, range, row number and origin."""
        self.owners += [len(self.rows)] * len(sequences)
        self.rows.append(place)
        self.sequences += sequences
        for sequence in sequences:
            self.chars += sum(map(len, sequence.chunks))

    def encode(self, encoder: SequenceEncoder) -> TokenBatch:
        """The tokens of all sequences. Rows with control-token text that cannot be encoded as plain text are moved to
        `rejects`."""
        bad: set[int] = set()
        for owner, sequence in zip(self.owners, self.sequences, strict=True):
            if sequence.guarded and owner not in bad:
                try:
                    encoder.check_guarded(sequence)
                except RowError as problem:
                    bad.add(owner)
                    self.rejects.append((self.rows[owner][3], problem.reason, problem.detail))
        if bad:
            stay = [index for index, owner in enumerate(self.owners) if owner not in bad]
            self.sequences = [self.sequences[index] for index in stay]
            self.owners = [self.owners[index] for index in stay]
        return encoder.encode(self.sequences)


class StoreWriter:
    """Writes the token store of one shard of `source`, applying `data.overlong` and `data.max_doc_tokens`."""

    def __init__(self, plan: Plan, source: Source, writer: TokenStoreWriter) -> None:
        self.data = plan.data
        self.seq_length = plan.seq_length
        self.source = source
        self.writer = writer
        self.rejected = 0

    def fill(self, batch: TokenBatcher, tokens: TokenBatch) -> Counts:
        """Write a batch and its tokens. Returns counts of rows, tokens, supervised tokens and rejected rows. DataError for a long
        sequence with `data.overlong=error`."""
        self.rejected = 0
        for reject in batch.rejects:
            self._reject(*reject)
        counts = self.writer.counts
        counts["rows"] += batch.read
        counts["guarded"] += sum(sequence.guarded for sequence in batch.sequences)
        counts["apart"] += sum(sequence.apart for sequence in batch.sequences)
        counts["open_ends"] += sum(sequence.open_ends for sequence in batch.sequences)
        counts["bare_headers"] += sum(sequence.bare_headers for sequence in batch.sequences)
        for key, rows in batch.unread.items():
            counts[f"unread/{key}"] += rows
        owners = np.array(batch.owners, np.int64)
        if self.source.config.format == FORMAT and self.data.overlong is Overlong.split_turns:
            tokens, owners, cut = split_documents(self._shortened(tokens), owners, self.seq_length)
            batch.owners = owners.tolist()
            counts["cut_documents"] += cut
        kept = self._lengths(batch, tokens)
        survivors = np.flatnonzero(np.bincount(owners[kept > 0], minlength=len(batch.rows)))
        new_row = np.full(len(batch.rows) + 1, -1, np.int64)
        new_row[survivors] = np.arange(len(survivors)) + self.writer.row_count
        self.writer.add_rows(_as_array(batch.rows)[survivors])
        ids, mask = tokens.input_ids, tokens.loss_mask
        if (kept != tokens.lengths).any():
            starts = np.cumsum(tokens.lengths) - tokens.lengths
            inside = np.arange(len(ids)) - np.repeat(starts, tokens.lengths) < np.repeat(kept, tokens.lengths)
            ids, mask = ids[inside], mask[inside]
        self.writer.add(ids, mask, kept[kept > 0], new_row[owners[kept > 0]])
        return batch.read, len(ids), int(np.count_nonzero(mask)), self.rejected

    def _reject(self, origin: str, reason: str, detail: str) -> None:
        self.rejected += 1
        self.writer.counts[f"rejected/{reason}"] += 1
        if reason in TEMPLATE_REASONS:
            self.writer.counts[f"refused/{reason}: {detail[:SHOWN]}"] += 1
        self.writer.reject(origin=origin, source=self.source.name, reason=reason, detail=detail)

    def _shortened(self, tokens: TokenBatch) -> TokenBatch:
        """The documents truncated to `data.max_doc_tokens`."""
        most = self.data.max_doc_tokens
        if not most or not (tokens.lengths > most).any():
            return tokens
        starts = np.cumsum(tokens.lengths) - tokens.lengths
        inside = np.arange(len(tokens.input_ids)) - np.repeat(starts, tokens.lengths) < most
        self.writer.counts["truncated"] += int((tokens.lengths > most).sum())
        return TokenBatch(tokens.input_ids[inside], tokens.loss_mask[inside], np.minimum(tokens.lengths, most))

    def _lengths(self, batch: TokenBatcher, tokens: TokenBatch) -> Any:
        """Number of tokens kept of each sequence (sequences,); 0 for dropped ones."""
        causes: list[tuple[int, str, str]] = []
        kept = tokens.lengths.copy()
        limit = min(self.data.max_doc_tokens or self.seq_length, self.seq_length)
        starts = np.cumsum(tokens.lengths) - tokens.lengths
        for index in np.flatnonzero(tokens.lengths > limit).tolist():
            row, length, start = batch.owners[index], int(tokens.lengths[index]), int(starts[index])
            mask = tokens.loss_mask[start : start + length]
            kept[index], reason = self._fit(mask, batch.rows[row][3])
            if not kept[index]:
                causes.append((row, reason, f"{length} tokens, seq_length is {self.seq_length}"))
        survivors = {batch.owners[index] for index in np.flatnonzero(kept).tolist()} if causes else set()
        lost: set[int] = set()
        for row, reason, detail in causes:
            origin = batch.rows[row][3]
            if row in survivors:
                self.writer.counts[f"dropped_sequences/{reason}"] += 1
                detail = f"one sequence of {detail}"
                self.writer.reject(origin=origin, source=self.source.name, reason=reason, detail=detail)
            elif row not in lost:
                lost.add(row)
                self._reject(origin, reason, detail)
        return kept

    def _fit(self, mask: Any, origin: str) -> tuple[int, str]:
        """How many tokens of a sequence with this `mask` (tokens,) are kept, and the reject reason if none."""
        length, seq_length = len(mask), self.seq_length
        if self.data.max_doc_tokens and length > self.data.max_doc_tokens:
            length = self.data.max_doc_tokens
            self.writer.counts["truncated"] += 1
        if length > seq_length and self.data.overlong is Overlong.error:
            raise DataError(
                f"{origin}: a sequence of {length} tokens does not fit seq_length={seq_length}. "
                "Raise seq_length, or set data.overlong to split_turns, drop or truncate."
            )
        if length > seq_length and self.data.overlong is Overlong.drop:
            return 0, "overlong"
        if length > seq_length and self.data.overlong is Overlong.truncate:
            length = seq_length
            self.writer.counts["truncated"] += 1
        if length > seq_length:  # split_turns: up to the last supervised turn that fits
            ends = np.flatnonzero(np.diff(mask[: seq_length + 1].astype(np.int8)) == -1) + 1
            self.writer.counts["cut_at_turn"] += len(ends) > 0
            return (int(ends[-1]), "") if len(ends) else (0, "overlong")
        return (length, "") if mask[:length].any() else (0, "truncated")


def _as_array(rows: list[tuple[int, int, int, str]]) -> NDArray[Any]:
    """Rows of ROW (rows,). Filled by columns, which is faster than by rows."""
    found = np.zeros(len(rows), ROW)
    for name, column in zip(ROW.names or (), zip(*rows, strict=True), strict=False):
        found[name] = column
    return found
