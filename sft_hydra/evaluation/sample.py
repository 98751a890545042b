"""Batched generation with a transformers model, from token ids to new token ids.

Invariant: the answer to a prompt does not depend on the rest of its batch; its position matters only for its random numbers
(and not if `numbers` is passed).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

TAIL = 8  # extra tokens that are searched beyond the length of a stop text in characters
BATCH_TOKENS = 1 << 17


@dataclass(frozen=True, slots=True)
class StopTexts:
    """Texts that end an answer; the answer includes them, the caller truncates it."""

    texts: tuple[str, ...]
    decode: Callable[[list[int]], str]

    def are_in(self, new_ids: list[int]) -> bool:
        """Whether one of them occurs in the last tokens."""
        longest = max(map(len, self.texts), default=0)
        end = self.decode(new_ids[-longest - TAIL :])
        return any(text in end for text in self.texts)


@torch.no_grad()
def generate(
    hf_model: Any,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: list[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 128,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    stop_texts: StopTexts | None = None,
    after_batch: Callable[[int], None] = lambda done: None,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """New token ids for every prompt, up to and excluding the first of `stop_ids`. `temperature` 0 is greedy.

    Prompts of similar length are batched, padded on the left: at most `batch_size`, with at most `batch_tokens` tokens of
    prompts, padding and answers together. A prompt's random numbers depend on `seed` and its number in `numbers` (default:
    its index). `after_batch` is called with the size of each batch.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    answers: list[list[int]] = [[] for _ in prompts]
    for chosen in batches([len(prompt) for prompt in prompts], max_new_tokens, batch_size, batch_tokens):
        batch = [prompts[i] for i in chosen]
        draws = Draws(seed, [numbers[i] for i in chosen], max_new_tokens, temperature, top_p) if temperature else None
        new_ids = _generate_batch(hf_model, batch, max_new_tokens, stop_ids, draws, stop_texts)
        for i, ids in zip(chosen, new_ids, strict=True):
            answers[i] = until_stop(ids, stop_ids)
        after_batch(len(chosen))
    return answers


def batches(lengths: Sequence[int], max_new_tokens: int, batch_size: int, batch_tokens: int) -> Iterator[list[int]]:
    """Batches of indices of prompts of similar length, longest first, so that running out of memory occurs at the start."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    while order:
        room = batch_tokens // (lengths[order[0]] + max_new_tokens)
        size = max(1, min(batch_size, room))
        yield order[:size]
        order = order[size:]


class Draws:
    """Samples the next tokens of a batch, with a separate random stream for each prompt (CPU generator, same on all devices)."""

    def __init__(
        self, seed: int, numbers: Sequence[int], max_new_tokens: int, temperature: float, top_p: float
    ) -> None:
        rows = []
        for number in numbers:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % (1 << 63))
            rows.append(torch.rand(max_new_tokens, generator=generator))
        self.uniform = torch.stack(rows)  # (rows, max_new_tokens)
        self.temperature, self.top_p = temperature, top_p

    def tokens(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Token ids (rows,) sampled from `logits` (rows, vocab) by nucleus sampling (Holtzman et al. 2020): from the
        smallest set of most likely tokens with total probability `top_p`. `step`: index of the new token."""
        values, ids = (logits.float() / self.temperature).softmax(-1).sort(descending=True, stable=True)
        sums = values.cumsum(-1)
        kept = (sums - values < self.top_p).sum(-1, keepdim=True)
        mass = sums.gather(1, kept - 1)
        uniform = self.uniform[:, step, None].to(logits.device)
        place = torch.searchsorted(sums, uniform * mass, right=True).minimum(kept - 1)
        return ids.gather(1, place)[:, 0]


def _generate_batch(
    hf_model: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: list[int],
    draws: Draws | None,
    stop_texts: StopTexts | None,
) -> list[list[int]]:
    from transformers import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    padding = stop_ids[0] if stop_ids else 0  # masked before a prompt, removed after an answer: any id works
    input_ids = torch.tensor([[padding] * (longest - len(p)) + p for p in prompts], device=hf_model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=hf_model.device)
    attention_mask = (torch.arange(longest, device=hf_model.device) >= longest - lengths[:, None]).long()
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=stop_ids or None, pad_token_id=padding, use_cache=True
    )

    def is_done(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        done = [stop_texts is not None and stop_texts.are_in(row) for row in ids[:, longest:].tolist()]
        return torch.tensor(done, device=ids.device)

    def only_drawn(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        assert draws is not None
        tokens = draws.tokens(logits, ids.shape[1] - longest)
        return torch.full_like(logits, -torch.inf).scatter(1, tokens[:, None], 0.0)

    output = hf_model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=config,
        stopping_criteria=[is_done] if stop_texts is not None else None,
        logits_processor=[only_drawn] if draws is not None else None,
    )
    return output[:, longest:].tolist()


def until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """`ids` up to and excluding the first of `stop_ids`."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
