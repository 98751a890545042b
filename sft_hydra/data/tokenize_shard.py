"""First half of a shard's work: rows -> checked, rendered, tokenized sequences in a spool (`ShardTokenizer.run`).

Owns what happens to a row on the way: every row read ends as sequences or as a line in rejects.jsonl, and is counted.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sft_hydra.config.schema_data import Overlong
from sft_hydra.data.conversation import to_conversation
from sft_hydra.data.filters import Filters
from sft_hydra.data.guard import WORD
from sft_hydra.data.judge import Judge
from sft_hydra.data.plan import Plan, ShardPlan
from sft_hydra.data.render import RenderedSequence, Renderer
from sft_hydra.data.skeleton import SkeletonError
from sft_hydra.data.sources import Bad, Source, read_rows
from sft_hydra.data.spool import SpoolWriter
from sft_hydra.data.tokenize import SequenceEncoder, TokenBatch
from sft_hydra.data.tokenizer import ChatTokenizer
from sft_hydra.errors import DataError, RowError
from sft_hydra.records import Conversation

JUDGED_TOGETHER = 256  # rows
BATCH_CHARS = 2_000_000  # text encoded at once: enough to be quick, little enough to stay small

Report = Callable[[int, int, int, int], None]  # more rows, tokens, trained tokens, rejects


class ShardTokenizer:
    """Does the first half for any shard of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        tokenizer = ChatTokenizer(plan.tokenizer_folder, plan.template, plan.template_kwargs)
        tokenizer.added = plan.added  # read once, when the plan was made
        self.renderer = Renderer.of(tokenizer, plan.data, datetime.fromisoformat(plan.now))
        self.filters = Filters(plan.data.filters)
        judge = plan.data.filters.judge
        self.judge = Judge(judge, plan.judge_cache) if judge.model else None
        prefix = tokenizer.bos_prefix if plan.template is None else []
        self.encoder = SequenceEncoder(tokenizer, plan.library, prefix)
        trusted = plan.data.allow_special_in_content or plan.template is None
        self.guard = None if trusted else self.encoder.guard

    def run(self, shard: ShardPlan, folder: Path, report: Report) -> None:
        """Write the shard's spool to `folder`."""
        try:
            self._run(shard, folder, report)
        except SkeletonError:  # the quick way is not for this template after all
            self.renderer.skeletons = None
            self._run(shard, folder, report)

    def _run(self, shard: ShardPlan, folder: Path, report: Report) -> None:
        writer = SpoolWriter(folder)
        source = self.plan.sources[shard.source]
        batch = _Batch(self, writer, source, report)
        for index, part in enumerate(shard.ranges):
            rows = read_rows(part.file, source, part.first, part.stop, part.offset)
            for number, row in self._judged(rows, source) if self.judge else rows:
                batch.add(row, index, number, f"{part.file.path}:{number + 1}")
        batch.flush()
        writer.close()

    def _judged(self, rows: Iterator[tuple[int, Any]], source: Source) -> Iterator[tuple[int, Any]]:
        """The same rows, when the judge has been asked about those that the filters keep, many at a time."""
        assert self.judge is not None
        while chunk := list(islice(rows, JUDGED_TOGETHER)):
            worth = []
            for _, row in chunk:
                with suppress(RowError, RecursionError):
                    worth.append(self.check(row, source, ""))
            self.judge.ask(worth)
            yield from chunk

    def check(self, row: Any, source: Source, origin: str) -> Conversation:
        """A parsed row as a conversation that the filters keep. Raises RowError."""
        if isinstance(row, Bad):
            raise RowError("malformed", row.problem)
        conversation = to_conversation(row, source.config, source.name, origin)
        self.filters.check(conversation)
        return conversation

    def convert(self, row: Any, source: Source, origin: str) -> tuple[Conversation, list[RenderedSequence]]:
        """A parsed row to its conversation and sequences. Raises RowError."""
        conversation = self.check(row, source, origin)
        if self.judge is not None:
            self.judge.check(conversation)
        sequences = self.renderer.sequences(conversation)
        if self.guard is not None and self.guard.is_needed(conversation):
            sequences = self._guarded(self.guard.mark(conversation), sequences)
        return conversation, sequences

    def _guarded(self, marked: Conversation, plain: list[RenderedSequence]) -> list[RenderedSequence]:
        """The sequences with control-token text marked, provided that the template does nothing else with it."""
        found = self.renderer.sequences(marked)
        same = [(sequence.chunks, sequence.trained) for sequence in plain]
        if [([c.replace(WORD, "") for c in sequence.chunks], sequence.trained) for sequence in found] != same:
            raise RowError("control_text", "the template acts on control-token text in a content")
        for sequence in found:
            sequence.guarded = WORD in sequence.text
        return found


class _Batch:
    """Rows until they are encoded together."""

    def __init__(self, worker: ShardTokenizer, writer: SpoolWriter, source: Source, report: Report) -> None:
        self.worker = worker
        self.writer = writer
        self.source = source
        self.report = report
        self.data = worker.plan.data
        self.clear()

    def clear(self) -> None:
        self.sequences: list[RenderedSequence] = []
        self.owners: list[int] = []  # index into self.rows, per sequence
        self.rows: list[tuple[int, int, int, str]] = []  # hash, range, number, origin
        self.chars = 0
        self.read = 0
        self.rejected = 0

    def add(self, row: Any, index: int, number: int, origin: str) -> None:
        self.read += 1
        try:
            conversation, sequences = self.worker.convert(row, self.source, origin)
            digest = content_hash(conversation)
            for sequence in sequences:
                if sequence.guarded:
                    self.worker.guard.encode(sequence.text)  # type: ignore[union-attr]
        except RowError as problem:
            self.reject(origin, problem.reason, problem.detail)
            return
        except RecursionError:
            self.reject(origin, "nesting", "objects or lists are nested too deeply")
            return
        self.owners += [len(self.rows)] * len(sequences)
        self.rows.append((digest, index, number, origin))
        self.sequences += sequences
        self.chars += sum(len(chunk) for sequence in sequences for chunk in sequence.chunks)
        if self.chars > BATCH_CHARS:
            self.flush()

    def reject(self, origin: str, reason: str, detail: str) -> None:
        self.rejected += 1
        self.writer.counts[f"rejected/{reason}"] += 1
        self.writer.reject(origin=origin, source=self.source.name, reason=reason, detail=detail)

    def flush(self) -> None:
        counts = self.writer.counts
        counts["rows"] += self.read
        batch = self.worker.encoder.encode(self.sequences)
        counts["guarded"] += sum(sequence.guarded for sequence in self.sequences)
        counts["left_out"] += sum(sequence.left_out for sequence in self.sequences)
        counts["bare_headers"] += sum(sequence.bare_headers for sequence in self.sequences)
        kept = self._lengths(batch)
        owners = np.array(self.owners, np.int64)
        survivors = np.unique(owners[kept > 0])
        new_row = np.full(len(self.rows) + 1, -1, np.int64)
        new_row[survivors] = np.arange(len(survivors)) + len(self.writer.rows)
        self.writer.rows += [self.rows[row][:3] for row in survivors.tolist()]
        ids, mask = batch.input_ids, batch.loss_mask
        if (kept != batch.lengths).any():
            starts = np.cumsum(batch.lengths) - batch.lengths
            inside = np.arange(len(ids)) - np.repeat(starts, batch.lengths) < np.repeat(kept, batch.lengths)
            ids, mask = ids[inside], mask[inside]
        self.writer.add(ids, mask, kept[kept > 0], new_row[owners[kept > 0]])
        self.report(self.read, len(ids), int(mask.sum()), self.rejected)
        self.clear()

    def _lengths(self, batch: TokenBatch) -> Any:
        """Tokens of each sequence that stay: 0 for those that do not fit the policies."""
        causes: list[tuple[int, str, str]] = []
        kept = batch.lengths.copy()
        limit = min(self.data.max_doc_tokens or self.worker.plan.seq_length, self.worker.plan.seq_length)
        starts = np.cumsum(batch.lengths) - batch.lengths
        for index in np.flatnonzero(batch.lengths > limit).tolist():
            row, length, start = self.owners[index], int(batch.lengths[index]), int(starts[index])
            mask = batch.loss_mask[start : start + length]
            kept[index], reason = self._fit(mask)
            if not kept[index]:
                causes.append((row, reason, f"{length} tokens, seq_length is {self.worker.plan.seq_length}"))
        survivors = {self.owners[index] for index in np.flatnonzero(kept).tolist()}
        lost: set[int] = set()
        for row, reason, detail in causes:
            if row in survivors:
                self.writer.counts[f"dropped_sequences/{reason}"] += 1
                self.writer.reject(
                    origin=self.rows[row][3], source=self.source.name, reason=reason, detail=f"one sequence of {detail}"
                )
            elif row not in lost:
                lost.add(row)
                self.reject(self.rows[row][3], reason, detail)
        return kept

    def _fit(self, mask: Any) -> tuple[int, str]:
        """How many tokens of a sequence stay, and the reason if none do."""
        length, seq_length = len(mask), self.worker.plan.seq_length
        if self.data.max_doc_tokens and length > self.data.max_doc_tokens:
            length = self.data.max_doc_tokens
            self.writer.counts["truncated"] += 1
        if length > seq_length and self.data.overlong is Overlong.error:
            raise DataError(
                f"source {self.source.name}: a sequence of {length} tokens does not fit seq_length={seq_length}. "
                "Raise seq_length or choose data.overlong=split_turns, drop or truncate."
            )
        if length > seq_length and self.data.overlong is Overlong.drop:
            return 0, "overlong"
        if length > seq_length and self.data.overlong is Overlong.truncate:
            length = seq_length
            self.writer.counts["truncated"] += 1
        if length > seq_length:  # split_turns: up to the last turn that ends inside
            ends = np.flatnonzero(np.diff(mask[: seq_length + 1].astype(np.int8)) == -1) + 1
            self.writer.counts["cut_at_turn"] += len(ends) > 0
            return (int(ends[-1]), "") if len(ends) else (0, "overlong")
        return (length, "") if mask[:length].any() else (0, "truncated")


def content_hash(conversation: Conversation) -> int:
    """64 bits of a conversation's messages and tools, the same for every tokenizer and template. Raises RowError."""
    what = [conversation.messages, conversation.tools]
    try:
        data = orjson.dumps(what, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer of more than 64 bits, half a surrogate pair, or no number
        try:
            data = json.dumps(what, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise RowError("unicode", "holds half a surrogate pair, which is no Unicode text") from None
        except ValueError:
            raise RowError("number", "holds NaN or an infinite number, which is no JSON") from None
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
