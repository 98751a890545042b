"""A model that answers as it is laid out for training, over FSDP, tensor, context, expert and pipeline ranks, with a KV cache
and Mamba states.

Data-parallel ranks answer different prompts, in as many passes as the rank with the most work: a pass is a collective. The
ranks of one data-parallel group do the same work and know the same answers. Pipeline stages work one after another.

Invariant: all ranks make the same number of passes, also where they have no prompts, or are done, or are to stop.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.evaluation.language_model import AfterBatch, BatchLimits, Decoding
from sft_hydra.evaluation.likelihood import LOGITS, Input, Pair, inputs_of
from sft_hydra.evaluation.sample import Draws, StopTexts, batches, until_stop
from sft_hydra.models.decoder import FamilyModel, Reader
from sft_hydra.models.generation_cache import GenerationCache
from sft_hydra.parallel.collectives import max_over_ranks
from sft_hydra.parallel.dtensor import local_tensor
from sft_hydra.parallel.mesh import Group
from sft_hydra.parallel.parallelize import reshard
from sft_hydra.process.signals import StoppedError
from sft_hydra.records import PackedRow

DONE, BUSY, STOPPED = 0, 1, 2


class ShardedModel:
    """A LanguageModel of `model`, which is not changed; `decode` turns ids into text for stop texts. `compiled`: its blocks are,
    for training."""

    def __init__(
        self, model: FamilyModel, decode: Callable[[list[int]], str], limits: BatchLimits, *, compiled: bool = False
    ) -> None:
        self.model, self.decode, self.limits, self.compiled = model, decode, limits, compiled
        self._stopped: StoppedError | None = None

    @property
    def max_length(self) -> int | None:
        """`max_position_embeddings` of the config."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def share(self) -> tuple[int, int]:
        """This rank's data-parallel group, of how many."""
        return self.model.mesh.dp.rank, self.model.mesh.dp.size

    def generate(
        self, prompts: list[list[int]], numbers: Sequence[int], decoding: Decoding, after_batch: AfterBatch
    ) -> list[list[int]]:
        """See LanguageModel. StoppedError on all ranks if `after_batch` raises it on one."""
        answers: list[list[int]] = [[] for _ in prompts]
        lengths = [len(prompt) for prompt in prompts]
        limits = self.limits
        parts = list(batches(lengths, decoding.max_new_tokens, limits.sequences, limits.tokens))
        with self._answering():
            for part in self._as_many_everywhere(parts):
                new_ids = self._continue([prompts[i] for i in part], [numbers[i] for i in part], decoding)
                for i, ids in zip(part, new_ids, strict=True):
                    answers[i] = until_stop(ids, decoding.stop_ids)
                self._count(after_batch, len(part))
        return answers

    def log_likelihoods(self, pairs: list[Pair], after_batch: AfterBatch) -> list[tuple[float, bool]]:
        """See LanguageModel. StoppedError on all ranks if `after_batch` raises it on one."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        parts = list(_full_batches(inputs_of(pairs), self.limits))
        with self._answering():
            for part in self._as_many_everywhere(parts):
                queries = _Queries(part, pairs)
                for pair, (value, greedy) in zip(queries.pairs, self._score(part, queries), strict=True):
                    found[pair] = found[pair][0] + value, found[pair][1] and bool(greedy)
                self._count(after_batch, sum(len(one.pairs) for one in part))
        return found

    @contextmanager
    def _answering(self) -> Iterator[None]:
        model, training = self.model, self.model.training
        model.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
                yield
        finally:
            model.cache = model.reader = None
            reshard(model.roots)
            model.train(training)

    def _as_many_everywhere(self, parts: list[Any]) -> Iterator[Any]:
        """The parts, and empty ones up to the largest number of parts of any rank. StoppedError if a rank is to stop."""
        self._stopped = None
        for number in range(int(max_over_ranks(len(parts), self.model.mesh))):
            yield parts[number] if number < len(parts) else []
            self._agree(busy=False)

    def _count(self, after_batch: AfterBatch, number: int) -> None:
        """A call that may not end this rank's passes before the others'."""
        try:
            after_batch(number)
        except StoppedError as stopped:
            self._stopped = stopped

    def _agree(self, *, busy: bool) -> bool:
        """Whether a rank is busy. StoppedError if one is to stop."""
        state = STOPPED if self._stopped is not None else BUSY if busy else DONE
        everywhere = max_over_ranks(state, self.model.mesh)
        if everywhere == STOPPED:
            raise self._stopped or StoppedError("another rank is to stop")
        return everywhere == BUSY

    def _continue(self, prompts: list[list[int]], numbers: list[int], decoding: Decoding) -> list[list[int]]:
        """New ids of each prompt, including the stop id; some tokens more where other prompts need them."""
        model = self.model
        texts = prompts or [[0]]  # a rank without prompts generates a text that is discarded
        cache = model.cache = GenerationCache([len(text) for text in texts], model.device)
        draws = None
        if decoding.temperature:
            draws = Draws(decoding.seed, numbers or [0], decoding.max_new_tokens, decoding.temperature, decoding.top_p)
        stops = StopTexts(decoding.stop_texts, self.decode)
        answers: list[list[int]] = [[] for _ in texts]
        is_open = [bool(prompts)] * len(texts)
        positions, step = [0] * len(texts), 0
        batch = self._batch(texts)
        while True:
            logits = self._forward(batch, self._last_logits)
            tokens = self._chosen(logits, draws, step, len(texts))
            for i, token in enumerate(tokens):
                if is_open[i]:
                    answers[i].append(token)
                    is_open[i] = token not in decoding.stop_ids and not (stops.texts and stops.are_in(answers[i]))
            step += 1
            if not self._agree(busy=step < decoding.max_new_tokens and any(is_open)):
                return answers[: len(prompts)]
            positions = [p + n for p, n in zip(positions, cache.new, strict=True)]
            cache.advance()
            batch = self._batch([[token] for token in tokens], positions)

    def _score(self, part: list[Input], queries: "_Queries") -> list[list[float]]:
        """[log probability, whether it is the largest] of each query."""
        batch = self._batch([one.ids for one in part] or [[0]])
        scores = self._forward(batch, lambda hidden: self._scores(hidden, queries))
        if scores is None:
            scores = torch.empty(max(1, len(queries.places)), 2, device=self.model.device)
        return self._same_everywhere(scores).tolist()[: len(queries.places)]

    def _forward(self, batch: Batch, reader: Reader) -> torch.Tensor | None:
        """The result of `reader` on the hidden states of the local tokens; None on ranks without the last stage."""
        self.model.reader = reader
        if self.model.pipeline is not None:
            return self.model.pipeline.relay(batch)
        return self.model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)

    def _batch(self, texts: list[list[int]], positions: list[int] | None = None) -> Batch:
        """The local shard of texts as packed documents; of texts of one token at `positions`."""
        mesh = self.model.mesh
        lengths = np.array([len(text) for text in texts])
        row = PackedRow(
            input_ids=np.concatenate(texts).astype(np.int32),
            loss_mask=np.zeros(lengths.sum(), np.uint8),
            seq_start_id=(lengths.cumsum() - lengths).astype(np.int32),
            source_id=np.zeros(len(texts), np.int16),
        )
        batch = make_batch([row], "cpu", mesh.cp.size * mesh.tp.size)
        if positions is not None:
            batch.position_ids[: len(texts)] = torch.tensor(positions)
        return batch.part(mesh, self.model.device)

    def _last_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (texts, vocab) after the last token of each text, from the local hidden states (t, D)."""
        assert self.model.cache is not None
        places = torch.tensor(self.model.cache.new, device=hidden.device).cumsum(0) - 1
        own, is_own = self._local(places, len(hidden))
        last = hidden[own] * is_own[:, None]
        return self._logits(self._summed(last))

    def _scores(self, hidden: torch.Tensor, queries: "_Queries") -> torch.Tensor:
        """See `_score`, of all ranks that hold tokens: (queries, 2) fp32."""
        scores = torch.zeros(max(1, len(queries.places)), 2, device=hidden.device)
        if not queries.places:
            return self._summed(scores)
        places, targets = (torch.tensor(values, device=hidden.device) for values in (queries.places, queries.targets))
        own, is_own = self._local(places, len(hidden))
        rows, row_of = own.unique(return_inverse=True)
        size = max(1, LOGITS // self.model.head_weight.shape[0])
        for first in range(0, len(rows), size):
            logits = self._logits(hidden[rows[first : first + size]]).float()
            here = (row_of >= first) & (row_of < first + size)
            row, target = row_of[here] - first, targets[here]
            value = logits[row, target] - logits.logsumexp(-1)[row]
            scores[here] = torch.stack([value, (logits.argmax(-1)[row] == target).float()], 1)
        return self._summed(scores * is_own[:, None])

    def _local(self, places: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(index among this rank's `tokens`, 0 where another rank has it; whether this rank has it) of places in the batch."""
        own = places - self.model.mesh.seq_rank * tokens
        is_own = (own >= 0) & (own < tokens)
        return own * is_own, is_own

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        head = self.model.used_head(local_tensor(self.model.head_weight))
        return self.model.logits(self.model.rounded(hidden), head)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks that share the tokens of a batch."""
        for group in (self.model.mesh.tp, self.model.mesh.cp):
            if group.size > 1:
                dist.all_reduce(values, group=group.handle)
        return values

    def _chosen(self, logits: torch.Tensor | None, draws: Draws | None, step: int, texts: int) -> list[int]:
        """The next token of each text, the same on all ranks of the data-parallel group."""
        if logits is None:
            chosen = torch.empty(texts, dtype=torch.int64, device=self.model.device)
        else:
            chosen = logits.argmax(-1) if draws is None else draws.tokens(logits, step)
        return self._same_everywhere(chosen).tolist()

    def _same_everywhere(self, values: torch.Tensor) -> torch.Tensor:
        """The values of the first rank, of the last pipeline stage, on all ranks of the data-parallel group."""
        mesh = self.model.mesh
        for group, source in ((mesh.tp, 0), (mesh.cp, 0), (mesh.pp, mesh.pp.size - 1)):
            _broadcast(values, group, source)
        return values


class _Queries:
    """Positions in a packed batch of `part` whose logits are read, with the token that follows there, and its pair."""

    def __init__(self, part: list[Input], pairs: list[Pair]) -> None:
        self.places: list[int] = []
        self.targets: list[int] = []
        self.pairs: list[int] = []
        first = 0
        for one in part:
            first += len(one.ids)
            for pair in one.pairs:
                continuation = pairs[pair][1]
                self.places += range(first - len(continuation), first)
                self.targets += continuation
                self.pairs += [pair] * len(continuation)


def _full_batches(inputs: list[Input], limits: BatchLimits) -> Iterator[list[Input]]:
    """Consecutive inputs, as many as the limits allow; they are packed, without padding."""
    batch: list[Input] = []
    for one in inputs:
        tokens = sum(len(other.ids) for other in batch) + len(one.ids)
        if batch and (len(batch) == limits.sequences or tokens > limits.tokens):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _broadcast(values: torch.Tensor, group: Group, source: int) -> None:
    if group.size > 1:
        assert group.handle is not None
        dist.broadcast(values, dist.get_global_rank(group.handle, source), group=group.handle)
