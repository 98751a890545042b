"""Compiled blocks compute what blocks compute, under every kind of recompute, in graphs that are few and all used."""

from typing import Any

import numpy as np
import pytest
import torch
from support.packed import ARCHITECTURES, make_model, make_row, relative
from support.ranks import run_ranks
from support.training import SEQ_LENGTH, Case, make_cfg, placed_model, training_rows
from torch._dynamo.utils import counters

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_backward, forward_loss, forward_only, load_batches, split_rows
from sft_hydra.models.generation_cache import GenerationCache
from sft_hydra.parallel import compiled_blocks
from sft_hydra.parallel.mesh import SINGLE
from sft_hydra.parallel.parallelize import Options, parallelize
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Recompute

GRAPHS_ONLY = "aot_eager_decomp_partition"  # traces and partitions as for the compiler of kernels, which takes minutes
# of each family a layer of every kind, and the graphs of a pass over them
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "qwen3": ({"num_hidden_layers": 1}, 4),
    "nano": ({"hybrid_override_pattern": "M*-"}, 9),
    "nano with experts": ({"hybrid_override_pattern": "M*E-"}, 15),
    "qwen3_moe": ({"num_hidden_layers": 2}, 9),
}

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it


@pytest.fixture
def graphs_only(monkeypatch):
    monkeypatch.setattr(compiled_blocks, "BACKEND", GRAPHS_ONLY)
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def batches(count):
    rng = np.random.default_rng(0)
    return [make_batch([make_row(rng.integers(2, 60, 4).tolist(), seed)], "cpu") for seed in range(count)]


def check_validation_then_training(family, kind):
    """Two batches without gradient, then two with: losses, gradients and the number of graphs after each."""
    layers, graphs = SMALL[family]
    architecture = ARCHITECTURES[family.partition(" ")[0]] | layers
    plain, compiled = make_model(architecture), make_model(architecture)
    parallelize([compiled], compiled.blocks, SINGLE, Options(compile=True, recompute=kind))
    seen = []
    for number, batch in enumerate(batches(4)):
        with torch.set_grad_enabled(number >= 2):
            losses = [forward_loss(model, batch)[0] for model in (plain, compiled)]
        assert relative(losses[1], losses[0]) < 1e-5
        if number >= 2:
            for loss in losses:
                loss.backward()
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] == graphs
    assert seen[1] <= graphs + 1  # Mamba's gate, of another length than in the first batch
    assert seen[2] == seen[1] + graphs
    assert seen[3] == seen[2]
    assert counters["frames"]["total"] == counters["frames"]["ok"]
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < 1e-4


@pytest.mark.parametrize("kind", ["selective", pytest.param("full", marks=pytest.mark.slow)])
def test_validation_then_training_in_as_many_graphs_as_there_are_layers(graphs_only, kind):
    check_validation_then_training("qwen3", kind)


def test_kinds_of_layers_do_not_share_the_limit_of_graphs(graphs_only):
    check_validation_then_training("nano", "full")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"), [("nano with experts", "selective"), ("qwen3_moe", "selective"), ("qwen3", "none")]
)
def test_other_families(graphs_only, family, kind):
    check_validation_then_training(family, kind)


def graphs_on_ranks(case, layout):
    """The number of graphs after each of two passes of validation and three of training."""
    compiled_blocks.BACKEND = GRAPHS_ONLY
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    cfg = make_cfg(case)
    model = placed_model(case, cfg, layout)
    rows, counts = training_rows(), []

    def load(numbers):
        return load_batches(rows, split_rows(numbers, 1, model.mesh), model, SEQ_LENGTH)

    for first in (0, 4):
        forward_only(model, load(range(first, first + 4)))
        counts.append(counters["stats"]["unique_graphs"])
    for first in (8, 12, 16):
        forward_backward(model, load(range(first, first + 4)), 1)
        counts.append(counters["stats"]["unique_graphs"])
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, {"tp": 2}])
@pytest.mark.parametrize(("kind", "lora"), [("selective", None), ("full", LoraConfig(dim=4))])
def test_fsdp_and_tensor_parallel_ranks_compile(kind, lora, sizes):
    layers, graphs = SMALL["qwen3"]
    case = Case("qwen3", lora, train={"compile": True, "recompute": Recompute(kind)}, architecture=layers)  # type: ignore[arg-type]
    for counts in run_ranks(2, graphs_on_ranks, case, Layout(gpus_per_node=2, **sizes)):
        assert counts[0] >= graphs
        assert counts[2] >= counts[1] + graphs
        assert counts[4] == counts[3]


@pytest.mark.slow
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


def test_texts_that_are_continued_from_a_cache_make_no_graphs(graphs_only):
    plain, compiled = make_model(ARCHITECTURES["nano"]), make_model(ARCHITECTURES["nano"])
    parallelize([compiled], compiled.blocks, SINGLE, Options(compile=True))
    batch = make_batch([make_row([12, 30])], "cpu")
    found = []
    for model in (plain, compiled):
        model.cache = GenerationCache([12, 30], torch.device("cpu"))
        with torch.no_grad():
            found.append(model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen))
    assert torch.equal(*found)
    assert "unique_graphs" not in counters["stats"]
