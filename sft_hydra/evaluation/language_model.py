"""What evaluation asks of a model, from token ids to token ids: `LanguageModel`; and a transformers model that answers on one
process: `TransformersModel`."""

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
    """Generation settings; `temperature` 0 is greedy. An answer ends before the first of `stop_ids` or after a token with
    which one of `stop_texts` is in it."""

    max_new_tokens: int
    stop_ids: list[int]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Size of a batch: sequences, and tokens of them with padding and answers."""

    sequences: int
    tokens: int


class LanguageModel(Protocol):
    """A model that answers prompts. Over several ranks every rank calls the same methods, each with its share of the work."""

    @property
    def max_length(self) -> int | None:
        """Context length in tokens; None if the config does not say."""

    @property
    def share(self) -> tuple[int, int]:
        """(number, of how many) of the share of the work that this rank does; (0, 1) on one process."""

    def generate(
        self, prompts: list[list[int]], numbers: Sequence[int], decoding: Decoding, after_batch: AfterBatch
    ) -> list[list[int]]:
        """New token ids for each prompt; random numbers depend on the seed and the prompt's number alone. `after_batch` is
        called with the number of prompts of each batch."""

    def log_likelihoods(self, pairs: list[Pair], after_batch: AfterBatch) -> list[tuple[float, bool]]:
        """See `likelihood.log_likelihoods`."""


class TransformersModel:
    """`hf_model` on its device, under autocast to `autocast` if that is set; `decode` turns ids into text for stop texts.
    `share`: the part of the work of this rank, if each rank has such a model."""

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
        """`max_position_embeddings` of the config."""
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
