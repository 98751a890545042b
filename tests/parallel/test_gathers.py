"""How often FSDP gathers weights: a block's for its forward and its backward pass, the root's (embedding and head) once."""

from typing import Any

import pytest
from support.ranks import run_ranks
from support.training import SEQ_LENGTH, Case, make_cfg, placed_model, training_rows
from torch.utils._python_dispatch import TorchDispatchMode

from sft_hydra.engine.microbatches import forward_backward, load_batches, split_rows
from sft_hydra.planning.layout import Layout


class Gathers(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "allgather" in op.overloadpacket.__name__
        return op(*args, **(kwargs or {}))


def gathers_of_two_micro_batches(case: Case) -> tuple[int, int]:
    """(all-gathers, blocks)."""
    cfg = make_cfg(case)
    model = placed_model(case, cfg, Layout(gpus_per_node=2))
    batches = load_batches(training_rows(), split_rows(range(4), 1, model.mesh), model, SEQ_LENGTH)
    assert len(batches) == 2
    with Gathers() as gathers:
        forward_backward(model, batches, 1)
    return gathers.count, len(model.blocks)


@pytest.mark.parametrize("family", ["qwen3", "llama"])  # a tied head, and one of its own
def test_the_root_is_gathered_once_in_a_micro_batch(family):
    for gathers, blocks in run_ranks(2, gathers_of_two_micro_batches, Case(family)):
        assert gathers == 2 * (1 + 2 * blocks)
