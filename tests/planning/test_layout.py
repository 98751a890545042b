"""The arithmetic of ranks."""

import pytest

from sft_hydra.planning.layout import Layout, layout_problems, plan_layout

DENSE = {"num_attention_heads": 16, "num_hidden_layers": 28}
MOE = {"num_attention_heads": 32, "num_hidden_layers": 52, "n_routed_experts": 128}


def test_auto_spreads_experts_over_a_node() -> None:
    layout = plan_layout(MOE, 4096, nodes=2, gpus_per_node=8)
    assert (layout.ep, layout.tp, layout.pp, layout.cp, layout.dp) == (8, 1, 1, 1, 16)


def test_auto_leaves_a_dense_model_to_data_parallelism() -> None:
    layout = plan_layout(DENSE, 4096, nodes=1, gpus_per_node=8)
    assert (layout.ep, layout.dp, layout.shards) == (1, 8, 8)


def test_auto_cuts_rows_that_outgrow_a_rank() -> None:
    assert plan_layout(DENSE, 131_072, nodes=1, gpus_per_node=8).cp == 4
    assert plan_layout(DENSE, 131_072, nodes=1, gpus_per_node=2).cp == 2


def test_what_the_user_says_stands() -> None:
    layout = plan_layout(MOE, 4096, nodes=4, gpus_per_node=8, tp=8, pp=4, cp=1, ep=2)
    assert (layout.tp, layout.pp, layout.cp, layout.ep, layout.dp) == (8, 4, 1, 2, 1)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(1, 8, tp=3), "3*1*1 = 3 does not divide the world of 8"),
        (Layout(1, 8, dp_replicate=3), "parallel.dp_replicate=3 does not divide the data-parallel size 8"),
        (Layout(1, 8, ep=3), "parallel.ep=3 does not divide"),
        (Layout(1, 64, tp=64), "parallel.tp=64 does not divide the model's 32 attention heads"),
        (Layout(1, 64, pp=64), "parallel.pp=64 is more than the model's 52 layers"),
        (Layout(1, 8, cp=8), "seq_length=4100 is not divisible by cp*tp = 8*1 = 8"),
    ],
)
def test_impossible_layouts_show_their_arithmetic(layout: Layout, words: str) -> None:
    assert any(words in problem for problem in layout_problems(layout, MOE, 4100))


HYBRID = MOE | {"num_key_value_heads": 2, "mamba_num_heads": 64, "n_groups": 8, "intermediate_size": 1856}


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(1, 8, tp=8, pp=1), "intermediate_size 1860"),
        (Layout(1, 12, tp=3, cp=1), "neither divides the model's 2 key-value heads nor is a multiple"),
        (Layout(2, 8, tp=16), "parallel.tp=16 does not divide the model's 8 Mamba groups"),
        (Layout(1, 24, cp=24), "8 Mamba groups of 8 heads"),
        (Layout(1, 8, ep=8, dp_replicate=2), "does not divide the 4 ranks that share a pipeline stage"),
        (Layout(1, 8, pp=2, vp=32), "parallel.pp*vp = 2*32 = 64 stages are more than the model's 52 layers"),
        (Layout(1, 8, vp=2), "parallel.vp=2 needs pipeline parallelism, but parallel.pp=1"),
    ],
)
def test_layouts_that_a_hybrid_cannot_have(layout: Layout, words: str) -> None:
    architecture = HYBRID | {"num_attention_heads": 48, "intermediate_size": 1860}
    assert any(words in problem for problem in layout_problems(layout, architecture, 4800))


@pytest.mark.parametrize(
    "layout", [Layout(1, 8, tp=8), Layout(1, 64, cp=64), Layout(1, 8, tp=2, cp=4, ep=8), Layout(4, 8, tp=8, pp=4, ep=8)]
)
def test_layouts_that_a_hybrid_can_have(layout: Layout) -> None:
    assert not list(layout_problems(layout, HYBRID, 4096))


def test_auto_keeps_experts_inside_a_copy_of_the_model() -> None:
    assert plan_layout(MOE, 4096, nodes=1, gpus_per_node=8, dp_replicate=2).ep == 4


def test_a_possible_layout_has_no_problem() -> None:
    assert not list(layout_problems(Layout(1, 8, tp=2, cp=2, ep=8), MOE, 4096))
