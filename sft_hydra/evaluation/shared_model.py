"""The work of evaluation shared by ranks: the first rank asks, every rank answers its share, and the first gets all answers.

Invariant: the ranks make the same calls in the same order, whether they have work, have none or are to stop; none waits for
one that does something else.

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
    """Answers of one rank, by number of the item. `stopped`: a signal ended its work before its time."""

    answers: dict[int, Any]
    stopped: bool


@contextmanager
def shared_over_ranks(model: LanguageModel, mesh: Mesh) -> Iterator[LanguageModel | None]:
    """On the first rank the model that answers with all ranks; on the others None, after they have answered all that it was
    asked: `with shared_over_ranks(model, mesh) as shared: if shared is not None: ...`. A collective."""
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
            if not shared.asking:  # else this rank failed while the others answer, and its end is theirs
                ranks.broadcast(None)


def _serve(model: LanguageModel, ranks: ObjectExchange) -> None:
    """Answer requests of the first rank until there are no more."""

    def after_batch(count: int) -> None:
        if signals.stop_requested():
            raise StoppedError("a rank received a signal to stop")

    while (request := ranks.broadcast(None)) is not None:
        ranks.gather(_answer(model, request, after_batch))


class _Shared:
    """The model of the first rank, whose every call is answered by all ranks."""

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
        """The answers in order. StoppedError if a rank was to stop."""
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
            raise StoppedError("stopped before all was answered; the same command starts over")
        found = {number: answer for part in parts for number, answer in part.answers.items()}
        after_batch(total - shown)
        return [found[number] for number in range(total)]


def _answer(model: LanguageModel, request: _Request, after_batch: Callable[[int], None]) -> _Answered:
    """What this rank makes of its share."""
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
    """Numbers of the items of this rank's share: long ones and short ones like every other share. Pairs that differ in their
    last token alone stay together."""
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
