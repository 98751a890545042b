"""Every sequence is packed once, nothing overflows, it always ends, and it is quick and tight."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep.pack import LAST, LOOK_AHEAD, pack
from sft_hydra.schema.data import Packing

LENGTHS = st.lists(st.integers(0, 64), max_size=200)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.sampled_from(list(Packing)), st.integers(0, 5))
def test_bins_are_a_partition_within_capacity(lengths: list[int], algorithm: Packing, seed: int) -> None:
    bins = pack(np.array(lengths, np.int64), 64, algorithm, seed)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= 64 for members in bins)
    assert all(bins)


def plain_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The rule of best fit without any shortcut: one sequence after the other, from lists."""
    left = {length: [i for i, n in enumerate(lengths) if n == length] for length in sorted({*lengths})}
    bins = [[index] for index in left.pop(0, [])]

    def pair(room: int, left: dict[int, list[int]]) -> list[int]:
        for length in sorted((n for n in left if left[n] and n < room), reverse=True):
            if left.get(room - length) and (2 * length != room or len(left[length]) > 1):
                return [length, room - length]
        return []

    def exact(room: int) -> list[int]:
        if left.get(room):
            return [room]
        if found := pair(room, left):
            return found
        for length in sorted((n for n in left if left[n] and n < room), reverse=True)[:LOOK_AHEAD]:
            if 3 * length >= room and (found := pair(room - length, {**left, length: left[length][1:]})):
                return [length, *found]
        return []

    while any(left.values()):
        members, room = [], capacity
        found = [max(n for n in left if left[n])]
        while found:
            members += [left[length].pop(0) for length in found]
            room -= sum(found)
            if not room or not (fitting := [n for n in left if left[n] and n <= room]):
                break
            count = -(-room // max(fitting))
            similar = [n for n in fitting if n <= -(-room // count)] if count <= LAST else fitting
            found = exact(room) or [max(similar or fitting)]
        bins.append(members)
    return bins


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 64), max_size=60), st.integers(1, 12), st.sampled_from([64, 65, 97, 300]))
def test_best_fit_gives_the_bins_of_its_rule(lengths: list[int], copies: int, capacity: int) -> None:
    lengths = lengths * copies
    assert pack(np.array(lengths, np.int64), capacity, Packing.best_fit) == plain_best_fit(lengths, capacity)


@pytest.mark.parametrize("algorithm", list(Packing))
@pytest.mark.parametrize(
    "lengths",
    [[], [0], [0] * 50, [1] * 130, [64] * 10, [33] * 9, [32] * 9, [63, 1] * 20, [64, 0, 1, 63, 62, 2, 33, 31, 32]],
)
def test_extreme_lengths_end(algorithm: Packing, lengths: list[int]) -> None:
    bins = pack(np.array(lengths, np.int64), 64, algorithm)
    assert sum(len(members) for members in bins) == len(lengths)


@pytest.mark.parametrize("lengths", [[65], [1, 65, 1], [-1]])
def test_what_cannot_fit_is_an_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"lengths must be 0\.\.64"):
        pack(np.array(lengths), 64, Packing.best_fit)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=300))
def test_best_fit_needs_no_more_bins_than_first_fit_decreasing_may(lengths: list[int]) -> None:
    least = max(-(-sum(lengths) // 64), sum(length > 32 for length in lengths))
    assert len(pack(np.array(lengths), 64, Packing.best_fit)) <= 11 / 9 * least * 1.2 + 1


def test_the_recipes_packers_give_the_recipes_bins_and_ours_no_more(shared: Path) -> None:
    cases = json.loads((shared / "goldens" / "nano3" / "packing.json").read_text())
    cases = {name: case for name, case in cases.items() if "lengths" in case}
    assert len(cases) >= 5
    for name, case in cases.items():
        lengths = np.minimum(np.array(case["lengths"]), case["pack_size"])
        for key, bins in case["bins"].items():
            algorithm, seed = key.split("/seed")
            assert pack(lengths, case["pack_size"], Packing(algorithm), int(seed)) == bins, (name, key)
        fewest = min(len(bins) for bins in case["bins"].values())
        assert len(pack(lengths, case["pack_size"], Packing.best_fit)) <= fewest, name


def test_a_million_lengths_are_quick_and_full() -> None:
    rng = np.random.default_rng(1)
    short = rng.lognormal(5.2, 0.35, 850_000).astype(np.int64) + 60  # like GSM8K
    longer = rng.normal(820, 110, 150_000).astype(np.int64)  # like conversations of some turns
    lengths = np.concatenate([short, longer]).clip(60, 4096)
    began = time.process_time()
    bins = pack(lengths, 4096, Packing.best_fit)
    assert time.process_time() - began < 6  # about 1.5 s on an idle core
    assert lengths.sum() / (len(bins) * 4096) > 0.9995


def test_real_lengths_are_packed_to_the_last_bin(shared: Path, real: ChatTokenizer) -> None:
    lengths = []
    for name in ("gsm8k_train", "nanochat_identity"):
        lines = (shared / "assets" / "chat" / f"{name}.jsonl").read_text().splitlines()[:1500]
        rows = [json.loads(line)["messages"] for line in lines]
        lengths += [
            len(e.ids) for e in real.backend.encode_batch_fast(["".join(m["content"] for m in r) for r in rows])
        ]
    bins = pack(np.array(lengths), 4096, Packing.best_fit)
    assert len(bins) <= -(-sum(lengths) // 4096) + 1


def test_first_fit_is_not_quadratic() -> None:
    lengths = np.random.default_rng(2).integers(1, 2000, 60_000)
    began = time.process_time()
    pack(lengths, 4096, Packing.first_fit_shuffle)
    assert time.process_time() - began < 8
