"""The model interface of evaluation, on token ids: `LanguageModel`; and a transformers model in one process:
`TransformersModel`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sft_hydra.evaluation.likelihood import Pair, log_likelihoods
from sft_hydra.evaluation.sample import StopTexts, generate

AfterBatch = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Decoding:
    """Generation settings; `temperature` 0 is greedy. An answer ends before the first of `stop_ids` or after the token that
    completes one of `stop_texts`."""

    max_new_tokens: int
    stop_ids: list[int]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Maximum batch size: sequences, and tokens including padding and answers."""

    sequences: int
    tokens: int


class LanguageModel(Protocol):
    """A model that generates and scores text. With several ranks, all call the same methods, each with its share of the work."""

    @property
    def max_length(self) -> int | None:
        """Context length in tokens; None if the config does not define it."""

    @property
    def share(self) -> tuple[int, int]:
        """(index, number of shares) of this rank's share of the work; (0, 1) for one process."""

    def generate(
        self, prompts: list[list[int]], numbers: Sequence[int], decoding: Decoding, after_batch: AfterBatch
    ) -> list[list[int]]:
        """New token ids for each prompt; random numbers depend only on the seed and the prompt's number. `after_batch` is
        called with the number of prompts of each batch."""

    def log_likelihoods(self, pairs: list[Pair], after_batch: AfterBatch) -> list[tuple[float, bool]]:
        """See `likelihood.log_likelihoods`."""


class TransformersModel:
    """`hf_model` on its device, with autocast to `autocast` if it is set. `decode` converts ids to text for stop texts.
    `share`: this rank's share of the work, if every rank has a model."""

    def __init__(
        self,
        hf_model: Any,
        decode: Callable[[list[int]], str],
        limits: BatchLimits,
        autocast: torch.dtype | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.hf_model = hf_model
        self.decode = decode
        self.limits = limits
        self.autocast = autocast
        self.share = share

    @property
    def max_length(self) -> int | None:
        """`max_position_embeddings` of the config; None if it has none."""
        limit = getattr(self.hf_model.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def generate(
        self, prompts: list[list[int]], numbers: Sequence[int], decoding: Decoding, after_batch: AfterBatch
    ) -> list[list[int]]:
        """See LanguageModel."""
        with self._computing():
            return generate(
                self.hf_model,
                prompts,
                numbers=numbers,
                max_new_tokens=decoding.max_new_tokens,
                stop_ids=decoding.stop_ids,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                batch_size=self.limits.sequences,
                batch_tokens=self.limits.tokens,
                seed=decoding.seed,
                stop_texts=StopTexts(decoding.stop_texts, self.decode) if decoding.stop_texts else None,
                after_batch=after_batch,
            )

    def log_likelihoods(self, pairs: list[Pair], after_batch: AfterBatch) -> list[tuple[float, bool]]:
        """See LanguageModel."""
        with self._computing():
            return log_likelihoods(
                self.hf_model, pairs, self.limits.sequences, after_batch, batch_tokens=self.limits.tokens
            )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.autocast(self.hf_model.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            yield
