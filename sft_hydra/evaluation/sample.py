"""Batched generation from a transformers model: token ids in, new token ids out.

Invariant: with temperature 0 the answer to a prompt does not depend on what else is in its batch.
"""

from typing import Any

import torch


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
) -> list[list[int]]:
    """New ids of every prompt, up to and without the first of `stop_ids`. `temperature` 0 is greedy.

    Prompts of similar length go together, padded on the left.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.random.fork_rng(devices=[hf_model.device] if hf_model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = [prompts[i] for i in chosen]
            new_ids = _generate_batch(hf_model, batch, max_new_tokens, stop_ids, temperature, top_p)
            for i, ids in zip(chosen, new_ids, strict=True):
                answers[i] = _until_stop(ids, set(stop_ids))
    return answers


def _generate_batch(
    hf_model: Any, prompts: list[list[int]], max_new_tokens: int, stop_ids: list[int], temperature: float, top_p: float
) -> list[list[int]]:
    from transformers import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    padding = stop_ids[0] if stop_ids else 0  # masked before a prompt, cut off after an answer: any id will do
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
    output = hf_model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=config)
    return output[:, longest:].tolist()


def _until_stop(ids: list[int], stop_ids: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
