"""Checks before training that a transformers model has no cross-document contamination in packed sequences.

Owner of: models of transformers are free of cross-document contamination.
"""

import torch

from sft_hydra.errors import ModelError
from sft_hydra.models.hf.attention_interface import WAY_OUT
from sft_hydra.models.hf.causal_lm import GenericModel
from sft_hydra.parallel.parallelize import reshard

LENGTHS = (13, 1, 22, 9)  # tokens of the conversations in the packed sequence
CHANGED = 2  # index of the conversation that is changed
TOLERANCE = {None: 1e-3, torch.bfloat16: 1e-1}  # relative difference between a conversation packed and alone


@torch.no_grad()
def check_contamination(model: GenericModel) -> None:
    """ModelError if a conversation's hidden states depend on its neighbours in the packed sequence, or differ from those of
    the conversation alone. A collective: all ranks must call it.
    """
    training = model.training
    model.eval()
    try:
        moved, apart = _measure(model)
    except ValueError as error:
        raise ModelError(
            f"model_type {model.config.model_type!r} fails on a packed sequence: {error}; {WAY_OUT}"
        ) from error
    reshard(model.roots)
    model.train(training)
    _refuse(model.config.model_type, moved, apart, TOLERANCE[model.rounds_to])


def _measure(model: GenericModel) -> tuple[float, float]:
    """(largest change in other conversations when one is changed, largest difference from each conversation alone), relative
    to the largest hidden-state value."""
    lengths = torch.tensor(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (int(lengths.sum()),), generator=generator)
    others = torch.randint(0, model.config.vocab_size, (LENGTHS[CHANGED],), generator=generator)
    before = _hidden(model, ids, lengths)
    parts = list(ids.split(LENGTHS))
    parts[CHANGED] = others
    after = _hidden(model, torch.cat(parts), lengths)
    alone = [_hidden(model, part, torch.tensor([len(part)])) for part in parts]
    moved = apart = 0.0
    for i, (old, new, single) in enumerate(zip(before.split(LENGTHS), after.split(LENGTHS), alone, strict=True)):
        size = float(single.abs().max())
        apart = max(apart, float((new - single).abs().max()) / size)
        if i != CHANGED:
            moved = max(moved, float((new - old).abs().max()) / size)
    return moved, apart


def _hidden(model: GenericModel, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Hidden states (T, hidden), fp32, of concatenated conversations with these lengths."""
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
    positions = torch.cat([torch.arange(int(length)) for length in lengths])
    inputs = (tensor.to(model.device) for tensor in (ids, positions, cu_seqlens))
    return model(*inputs, int(lengths.max())).float()


def _refuse(family: str, moved: float, apart: float, tolerance: float) -> None:
    if moved > 0:
        raise ModelError(
            f"model_type {family!r} leaks across packed conversations: changing one changes the hidden states of others "
            f"(relative difference {moved:.1e}; a layer other than attention mixes tokens); {WAY_OUT}"
        )
    if not apart <= tolerance:
        raise ModelError(
            f"model_type {family!r} gives different hidden states for a conversation when packed than when alone (relative "
            f"difference {apart:.1e}, tolerance {tolerance:.0e}; caused by positions or an attention mask); {WAY_OUT}"
        )
