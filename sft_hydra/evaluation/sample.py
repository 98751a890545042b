"""Batched generation with a transformers model, from token ids to new token ids.

Invariant: with temperature 0 the answer to a prompt does not depend on the rest of its batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

TAIL = 8  # extra tokens that are searched beyond the length of a stop text in characters


@dataclass(frozen=True, slots=True)
class StopTexts:
    """Texts that end an answer; the caller cuts the answer at them."""

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
    seed: int = 0,
    stop_texts: StopTexts | None = None,
    after_batch: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """New token ids for every prompt, up to and excluding the first of `stop_ids`. `temperature` 0 is greedy.

    Prompts of similar length are batched, padded on the left. `after_batch` is called with the size of each batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.random.fork_rng(devices=[hf_model.device] if hf_model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = [prompts[i] for i in chosen]
            new_ids = _generate_batch(hf_model, batch, max_new_tokens, stop_ids, temperature, top_p, stop_texts)
            for i, ids in zip(chosen, new_ids, strict=True):
                answers[i] = _until_stop(ids, set(stop_ids))
            after_batch(len(chosen))
    return answers


def _generate_batch(
    hf_model: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: list[int],
    temperature: float,
    top_p: float,
    stop_texts: StopTexts | None,
) -> list[list[int]]:
    from transformers import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    padding = stop_ids[0] if stop_ids else 0  # masked before a prompt, cut off after an answer: any id works
    input_ids = torch.tensor([[padding] * (longest - len(p)) + p for p in prompts], device=hf_model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=hf_model.device)
    attention_mask = (torch.arange(longest, device=hf_model.device) >= longest - lengths[:, None]).long()
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids or None,
        pad_token_id=padding,
        use_cache=True,
        **sampling,
    )

    def is_done(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        done = [stop_texts is not None and stop_texts.are_in(row) for row in ids[:, longest:].tolist()]
        return torch.tensor(done, device=ids.device)

    output = hf_model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=config,
        stopping_criteria=[is_done] if stop_texts is not None else None,
    )
    return output[:, longest:].tolist()


def _until_stop(ids: list[int], stop_ids: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
