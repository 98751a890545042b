"""Proof, at the start of training, that conversations of a packed row do not see each other in a model that is not ours.

Owner of: models of transformers are free of cross-document contamination.
"""

import torch

from sft_hydra.errors import ModelError
from sft_hydra.models.hf.attention_interface import WAY_OUT
from sft_hydra.models.hf.causal_lm import GenericModel
from sft_hydra.parallel.parallelize import reshard

LENGTHS = (13, 1, 22, 9)  # of the conversations of the row
CHANGED = 2  # which of them is changed
TOLERANCE = {None: 1e-3, torch.bfloat16: 1e-1}  # between a conversation packed and alone, of its largest value


@torch.no_grad()
def check_contamination(model: GenericModel) -> None:
    """ModelError if hidden states of a conversation depend on its neighbours, or are not those that it has alone.

    All ranks must ask; they compute the same.
    """
    training = model.training
    model.eval()
    try:
        moved, apart = _measure(model)
    except ValueError as error:
        raise ModelError(f"model_type {model.config.model_type!r} refuses a packed row: {error} {WAY_OUT}") from error
    reshard(model.roots)
    model.train(training)
    _refuse(model.config.model_type, moved, apart, TOLERANCE[model.rounds_to])


def _measure(model: GenericModel) -> tuple[float, float]:
    """How far others move when one conversation changes, and how far each is from what it is alone; of the largest value."""
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
    for i, (old, new, own) in enumerate(zip(before.split(LENGTHS), after.split(LENGTHS), alone, strict=True)):
        size = float(own.abs().max())
        apart = max(apart, float((new - own).abs().max()) / size)
        if i != CHANGED:
            moved = max(moved, float((new - old).abs().max()) / size)
    return moved, apart


def _hidden(model: GenericModel, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(T, hidden), fp32, of conversations of these lengths, end to end."""
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
    positions = torch.cat([torch.arange(int(length)) for length in lengths])
    inputs = (tensor.to(model.device) for tensor in (ids, positions, cu_seqlens))
    return model(*inputs, int(lengths.max())).float()


def _refuse(family: str, moved: float, apart: float, tolerance: float) -> None:
    if moved > 0:
        raise ModelError(
            f"model_type {family!r} lets conversations of a packed row see each other: a change of one moves hidden states "
            f"of others by {moved:.1e} of their size (some layer that is not attention passes on what came before). {WAY_OUT}"
        )
    if not apart <= tolerance:
        raise ModelError(
            f"model_type {family!r} computes a packed conversation otherwise than alone: hidden states differ by "
            f"{apart:.1e} of their size (positions, or a mask of its own). {WAY_OUT}"
        )
