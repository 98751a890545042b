"""Distributes evaluation over ranks: rank 0 broadcasts requests, every rank answers its share, and rank 0 gathers all answers.

Invariant: all ranks make the same collective calls in the same order, also without work or after a stop signal, so that they
never deadlock.

Owner of: every rank answers its share of the prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sft_hydra.evaluation.language_model import AfterBatch, Decoding, LanguageModel
from sft_hydra.evaluation.likelihood import Pair
from sft_hydra.parallel.collectives import ObjectExchange, object_exchange
from sft_hydra.parallel.mesh import Mesh
from sft_hydra.process import signals
from sft_hydra.process.signals import StoppedError


@dataclass(frozen=True, slots=True)
class _Request:
    """Work for all ranks: prompts to continue with `decoding`, or pairs to score without it."""

    items: list[Any]
    decoding: Decoding | None


@dataclass(frozen=True, slots=True)
class _Answered:
    """Answers of one rank: number of the item -> answer. `stopped`: a signal interrupted it."""

    answers: dict[int, Any]
    stopped: bool


@contextmanager
def shared_over_ranks(model: LanguageModel, mesh: Mesh) -> Iterator[LanguageModel | None]:
    """On rank 0 a model that uses all ranks. The other ranks answer its requests and get None when there are no more:
    `with shared_over_ranks(model, mesh) as shared: if shared is not None: ...`. A collective."""
    if mesh.layout.world == 1:
        yield model
        return
    with object_exchange() as ranks:
        if mesh.rank:
            _serve(model, ranks)
            yield None
            return
        shared = _Shared(model, ranks)
        try:
            yield shared
        finally:
            if not shared.asking:  # else this rank failed during a request, and the job ends with it
                ranks.broadcast(None)


def _serve(model: LanguageModel, ranks: ObjectExchange) -> None:
    """Answer requests of rank 0 until it ends."""

    def after_batch(count: int) -> None:
        if signals.stop_requested():
            raise StoppedError("a rank received a stop signal")

    while (request := ranks.broadcast(None)) is not None:
        ranks.gather(_answer(model, request, after_batch))


class _Shared:
    """The model of rank 0; every call is answered by all ranks."""

    share = (0, 1)

    def __init__(self, model: LanguageModel, ranks: ObjectExchange) -> None:
        self._model, self._ranks = model, ranks
        self.asking = False  # between a request and its answers

    @property
    def max_length(self) -> int | None:
        """See LanguageModel."""
        return self._model.max_length

    def generate(
        self, prompts: list[list[int]], numbers: Sequence[int], decoding: Decoding, after_batch: AfterBatch
    ) -> list[list[int]]:
        """See LanguageModel."""
        return self._ask(_Request(list(zip(numbers, prompts, strict=True)), decoding), after_batch)

    def log_likelihoods(self, pairs: list[Pair], after_batch: AfterBatch) -> list[tuple[float, bool]]:
        """See LanguageModel."""
        return self._ask(_Request(pairs, None), after_batch)

    def _ask(self, request: _Request, after_batch: AfterBatch) -> list[Any]:
        """The answers in order. StoppedError if a rank received a stop signal."""
        total, own, done, shown = len(request.items), len(_share(self._model, request)), 0, 0

        def count(answered: int) -> None:
            nonlocal done, shown
            done += answered
            now = total * done // max(own, 1)
            after_batch(now - shown)
            shown = now

        self.asking = True
        self._ranks.broadcast(request)
        parts = self._ranks.gather(_answer(self._model, request, count))
        self.asking = False
        if any(part.stopped for part in parts):
            raise StoppedError("evaluation stopped before it was complete; rerun the same command to restart it")
        found = {number: answer for part in parts for number, answer in part.answers.items()}
        after_batch(total - shown)
        return [found[number] for number in range(total)]


def _answer(model: LanguageModel, request: _Request, after_batch: Callable[[int], None]) -> _Answered:
    """The answers of this rank's share."""
    own = _share(model, request)
    items = [request.items[number] for number in own]
    try:
        if request.decoding is None:
            answers: list[Any] = model.log_likelihoods(items, after_batch)
        else:
            prompts = [prompt for _, prompt in items]
            answers = model.generate(prompts, [number for number, _ in items], request.decoding, after_batch)
    except StoppedError:
        return _Answered({}, stopped=True)
    return _Answered(dict(zip(own, answers, strict=True)), stopped=False)


def _share(model: LanguageModel, request: _Request) -> list[int]:
    """Numbers of the items in this rank's share. Long and short items are spread evenly; pairs that differ only in their last
    token stay together."""
    mine, of = model.share
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(request.items):
        if request.decoding is None:
            context, continuation = item
            groups.setdefault((*context, *continuation[:-1]), []).append(number)
        else:
            groups[len(item[1]), number] = [number]
    by_length = sorted(groups.items(), key=lambda group: (_length(group[0], request), group[0]), reverse=True)
    return [number for _, numbers in by_length[mine::of] for number in numbers]


def _length(key: tuple[int, ...], request: _Request) -> int:
    return len(key) if request.decoding is None else key[0]
