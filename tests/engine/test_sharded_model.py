"""A model answers as it is laid out: the tokens and likelihoods that transformers' model gives on one process."""

import pytest
import torch
from support.packed import ARCHITECTURES, make_model
from support.ranks import RanksFailedError, run_ranks
from support.training import Case, make_cfg, placed_model

from sft_hydra.engine.sharded_model import ShardedModel
from sft_hydra.evaluation.language_model import BatchLimits, Decoding, TransformersModel
from sft_hydra.evaluation.shared_model import shared_over_ranks
from sft_hydra.models.build import as_transformers
from sft_hydra.planning.layout import Layout
from sft_hydra.process.signals import StoppedError

PROMPTS = [[7, 8, 9], [5], list(range(40)), [11, 12], [30, 31, 32, 33, 34], [1, 2]]
PAIRS = [
    ([1, 2, 3], [4]),
    ([1, 2, 3], [5]),
    ([1, 2, 3, 4], [7, 8, 9]),
    (list(range(40)), [3, 3]),
    ([9, 9, 9], [1, 2, 3, 4, 5, 6, 7]),
]
LIMITS = BatchLimits(sequences=4, tokens=300)
GREEDY = Decoding(max_new_tokens=9, stop_ids=[3])
DRAWN = Decoding(max_new_tokens=6, stop_ids=[96], temperature=1.5, top_p=0.9, seed=4)


def nothing(count):
    pass


def decode(ids):
    return " ".join(map(str, ids))


def answers(model):
    return [
        model.generate(PROMPTS, range(len(PROMPTS)), GREEDY, nothing),
        model.generate(PROMPTS, range(len(PROMPTS)), DRAWN, nothing),
        model.log_likelihoods(PAIRS, nothing),
        model.generate(PROMPTS[:1], [0], GREEDY, nothing),  # most data-parallel ranks have nothing to do
    ]


def same(found, expected):
    assert found[:2] + found[3:] == expected[:2] + expected[3:]
    assert [value for value, _ in found[2]] == pytest.approx([value for value, _ in expected[2]], abs=2e-4)
    assert [greedy for _, greedy in found[2]] == [greedy for _, greedy in expected[2]]


def of_transformers(case):
    model = placed_model(case, make_cfg(case), Layout())
    return answers(TransformersModel(as_transformers(model), decode, LIMITS))


@pytest.mark.parametrize("family", ["qwen3", "nano", "super", "mistral_window", "qwen3_moe"])
def test_one_process_answers_as_transformers(family):
    model = make_model(ARCHITECTURES[family])
    expected = answers(TransformersModel(as_transformers(model), decode, LIMITS))
    same(answers(ShardedModel(model, decode, LIMITS)), expected)
    assert model.cache is model.reader is None


def test_stop_texts_end_an_answer():
    model = make_model(ARCHITECTURES["qwen3"])
    [whole] = ShardedModel(model, decode, LIMITS).generate([[7, 8]], [0], Decoding(9, []), nothing)
    text = decode(whole[3:5])
    for each in (ShardedModel(model, decode, LIMITS), TransformersModel(as_transformers(model), decode, LIMITS)):
        [cut] = each.generate([[7, 8]], [0], Decoding(9, [], stop_texts=(text,)), nothing)
        assert cut == whole[: len(cut)]
        assert text in decode(cut)
        assert len(cut) <= 5


def on_ranks(case, layout, copies):
    model = placed_model(case, make_cfg(case), layout)
    mesh = model.mesh
    if copies:
        own = TransformersModel(as_transformers(model), decode, LIMITS, share=(mesh.rank, mesh.layout.world))
    else:
        own = ShardedModel(model, decode, LIMITS)  # type: ignore[assignment]
    counted = []
    with shared_over_ranks(own, mesh) as shared:
        if shared is None:
            return None
        found = answers(shared)
        shared.generate(PROMPTS, range(len(PROMPTS)), GREEDY, counted.append)
        assert sum(counted) == len(PROMPTS)
        return found


LAYOUTS = [
    ("nano", 4, {"ep": 4}),
    ("nano", 4, {"tp": 2, "cp": 2, "ep": 2}),
    ("nano", 4, {"pp": 2, "ep": 2}),
    ("qwen3", 4, {"tp": 2}),
    ("qwen3", 4, {"pp": 2, "cp": 2}),
    ("qwen3", 2, {"pp": 2, "vp": 1}),
    ("qwen3_moe", 3, {"ep": 3}),
]


@pytest.mark.parametrize(
    ("family", "world", "sizes"),
    [pytest.param(*LAYOUTS[0]), *(pytest.param(*case, marks=pytest.mark.distributed) for case in LAYOUTS[1:])],
)
def test_ranks_answer_as_transformers_on_one_process(family, world, sizes):
    case = Case(family, weights=torch.float32)
    first, *others = run_ranks(world, on_ranks, case, Layout(gpus_per_node=world, **sizes), copies=False)
    assert others == [None] * (world - 1)
    same(first, of_transformers(case))


@pytest.mark.parametrize(
    ("world", "sizes"), [(2, {}), pytest.param(4, {"pp": 2, "ep": 2}, marks=pytest.mark.distributed)]
)
def test_copies_answer_as_transformers_on_one_process(world, sizes):
    case = Case("nano", weights=torch.float32)
    first, *_ = run_ranks(world, on_ranks, case, Layout(gpus_per_node=world, **sizes), copies=True)
    same(first, of_transformers(case))


def stop(case, layout, copies):
    model = placed_model(case, make_cfg(case), layout)
    own = ShardedModel(model, decode, LIMITS)
    if copies:
        own = TransformersModel(as_transformers(model), decode, LIMITS, share=(model.mesh.rank, 2))  # type: ignore[assignment]

    def at_once(count):
        raise StoppedError("now")

    with shared_over_ranks(own, model.mesh) as shared:
        if shared is not None:
            with pytest.raises(StoppedError):
                shared.generate(PROMPTS, range(len(PROMPTS)), GREEDY, at_once)
            return shared.generate(PROMPTS[:1], [0], GREEDY, nothing)
    return None


@pytest.mark.parametrize("copies", [False, pytest.param(True, marks=pytest.mark.distributed)])
def test_a_rank_that_stops_leaves_no_other_waiting(copies):
    case = Case("qwen3", weights=torch.float32)
    first, _ = run_ranks(2, stop, case, Layout(gpus_per_node=2), copies)
    assert first == of_transformers(case)[3]


def fail(case, layout):
    model = placed_model(case, make_cfg(case), layout)
    own = TransformersModel(as_transformers(model), decode, LIMITS, share=(model.mesh.rank, 2))

    def broken(count):
        raise ValueError("broken")

    with shared_over_ranks(own, model.mesh) as shared:
        if shared is not None:
            shared.generate(PROMPTS, range(len(PROMPTS)), GREEDY, broken)


@pytest.mark.distributed
def test_a_first_rank_that_fails_does_not_wait_for_the_others():
    with pytest.raises(RanksFailedError, match="broken"):
        run_ranks(2, fail, Case("qwen3", weights=torch.float32), Layout(gpus_per_node=2))
