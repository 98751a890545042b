"""The arithmetic of ranks."""

import pytest

from sft_hydra.parallel.layout import Layout, layout_problems, plan_layout

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


def test_a_possible_layout_has_no_problem() -> None:
    assert not list(layout_problems(Layout(1, 8, tp=2, cp=2, ep=8), MOE, 4096))
