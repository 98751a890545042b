"""Compiled blocks compute what blocks compute, on rows of many lengths, without being compiled for each of them."""

import numpy as np
import pytest
import torch
from support.packed import ARCHITECTURES, make_model, make_row, relative
from torch._dynamo.utils import counters

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.parallel.mesh import SINGLE
from sft_hydra.parallel.parallelize import Options, parallelize


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
@pytest.mark.parametrize(
    ("family", "layers"), [("qwen3", {"num_hidden_layers": 1}), ("nano", {"hybrid_override_pattern": "ME"})]
)
def test_few_layers_over_rows_of_many_lengths(family, layers):
    architecture = ARCHITECTURES[family] | layers
    plain, compiled = make_model(architecture), make_model(architecture)
    parallelize([compiled], compiled.blocks, SINGLE, Options(compile=True))
    rng = np.random.default_rng(0)
    graphs = []
    torch._dynamo.reset()
    counters.clear()
    for seed in range(12):
        batch = make_batch([make_row(rng.integers(1, 60, rng.integers(2, 7)).tolist(), seed)], "cpu")
        losses = [forward_loss(model, batch)[0] for model in (plain, compiled)]
        for loss in losses:
            loss.backward()
        assert relative(losses[1], losses[0]) < 1e-5
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[6]  # those before were enough
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < 1e-4
