"""Splits by content: exact ratios, each source its share, nothing on two sides, no matter in which order rows come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_hydra.data.splits import LEFT_OUT, TEST, TRAIN, VALID, assign, mix
from sft_hydra.schema.data import SplitConfig


def hashes(count: int, seed: int = 0) -> np.ndarray:
    return mix(np.arange(count, dtype=np.uint64), seed + 77)


@settings(max_examples=80, deadline=None)
@given(st.integers(3, 3000), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 9))
def test_ratios_hold_within_one_conversation(count: int, valid: float, test: float, seed: int) -> None:
    ratios = SplitConfig(train=1 - valid - test, valid=valid, test=test)
    (splits,) = assign([hashes(count)], [None], ratios, seed)
    held_out = [(VALID, valid), (TEST, test)]
    for split, share in held_out:
        wanted = max(round(count * share), 1) if share > 0 else 0
        assert abs(int((splits == split).sum()) - wanted) <= 1
    assert (splits == TRAIN).any()


@pytest.mark.parametrize(
    ("count", "counts"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1)), (10, (8, 1, 1))]
)
def test_tiny_sources(count: int, counts: tuple[int, int, int]) -> None:
    (splits,) = assign([hashes(count)], [None], SplitConfig(), 0)
    assert tuple(int((splits == split).sum()) for split in (TRAIN, VALID, TEST)) == counts


def test_each_source_has_its_share() -> None:
    found = assign([hashes(1000), hashes(200, 1)], [None, None], SplitConfig(), 0)
    assert [int((splits == VALID).sum()) for splits in found] == [10, 2]


def test_order_does_not_matter_and_the_seed_does() -> None:
    values = hashes(500)
    shuffled = np.random.default_rng(0).permutation(500)
    (a,), (b,) = (assign([v], [None], SplitConfig(), 1) for v in (values, values[shuffled]))
    assert (a[shuffled] == b).all()
    (c,) = assign([values], [None], SplitConfig(), 2)
    assert (a != c).any()


def test_the_same_conversation_is_on_one_side_across_sources() -> None:
    shared = hashes(400)
    first, second = assign(
        [shared, np.concatenate([shared[:150], hashes(50, 5)])],
        [None, None],
        SplitConfig(train=0.8, valid=0.1, test=0.1),
        3,
    )
    assert (first[:150] == second[:150]).all()


def test_repetitions_stay_together_and_dedup_keeps_the_first() -> None:
    values = np.concatenate([hashes(100), hashes(100)])
    (splits,) = assign([values], [None], SplitConfig(), 0)
    assert (splits[:100] == splits[100:]).all()
    (splits,) = assign([values], [None], SplitConfig(), 0, dedup=True)
    assert (splits[100:] == LEFT_OUT).all()
    assert (splits[:100] != LEFT_OUT).all()


def test_one_conversation_many_times_is_still_for_training() -> None:
    (splits,) = assign([np.zeros(50, np.uint64)], [None], SplitConfig(train=0.5, valid=0.25, test=0.25), 0)
    assert (splits == TRAIN).all()


def test_a_validation_file_is_the_validation_split_and_is_not_trained() -> None:
    train, valid = hashes(100), hashes(20)
    first, second = assign([train, valid], [None, "valid"], SplitConfig(train=0.9, valid=0.05, test=0.05), 0)
    assert (second == VALID).all()
    assert (first[:20] == LEFT_OUT).all()
    assert not (first == VALID).any()
    assert (first[20:] == TRAIN).sum() >= 75
