"""What ranks tell each other in a step: bad rows by name, and shares of rows that leave nothing out."""

import pytest
import torch
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model, training_rows

from sft_hydra.engine.loop import TrainState, optimizer_step
from sft_hydra.engine.microbatches import split_rows
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import NonFiniteLossError
from sft_hydra.parallel.dtensor import copy_shard_, full_tensor
from sft_hydra.parallel.mesh import Group, Mesh
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of

POISON = 96  # a token of two rows


def poisoned_step(layout):
    """The error of a step whose rows 1 and 3 have a token without a finite embedding; whether the model has changed."""
    case = Case("llama")
    cfg = make_cfg(case)
    model = placed_model(case, cfg, layout)
    rows = training_rows()
    for number, row in enumerate(rows[:4]):
        row.input_ids[row.input_ids == POISON] = 0
        if number in (1, 3):
            row.input_ids[0], row.loss_mask[0] = POISON, 1
    if model.mesh.pp.rank == 0:
        embedding = full_tensor(model.model.embed_tokens.weight).clone()
        embedding[POISON] = torch.inf
        copy_shard_(model.model.embed_tokens.weight, embedding)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(NonFiniteLossError) as caught:
        optimizer_step(
            model, build_optimizer(model, cfg.optimizer, cfg.train.precision), rows, TrainState(), recipe_of(cfg), 3
        )
    unchanged = [bool((a == b).all()) for a, b in zip(before, model.parameters(), strict=True)]
    return str(caught.value), all(unchanged)


@pytest.mark.parametrize("sizes", [{}, {"pp": 2}])
def test_every_rank_names_the_rows_of_all_ranks_and_none_updates(sizes):
    alone, _ = poisoned_step(Layout())
    assert "packed sequences 1, 3 of the train split;" in alone
    for text, unchanged in run_ranks(2, poisoned_step, Layout(gpus_per_node=2, **sizes)):
        assert text == alone
        assert unchanged


@pytest.mark.parametrize(("rows", "ranks", "size"), [(8, 2, 1), (7, 2, 2), (3, 4, 1), (5, 3, 2), (1, 8, 4)])
def test_shares_cover_every_row_once_in_equally_many_micro_batches(rows, ranks, size):
    shares = [split_rows(range(100, 100 + rows), size, Mesh(dp=Group(ranks, rank))) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    taken = [number for share in shares for numbers in share for number in numbers]
    assert taken == list(range(100, 100 + rows))
    assert all(len(numbers) <= size for share in shares for numbers in share)
