"""Sequences are gathered in the packed order, and their mask is shifted inside each."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft_hydra.data_prep.pack_shard import gather
from sft_hydra.data_prep.token_store import ROW, TokenStore


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_gathered_sequences_are_those_of_the_store(lengths: list[int]) -> None:
    total = sum(lengths)
    rng = np.random.default_rng(len(lengths) + total)
    mask = rng.integers(0, 2, total).astype(np.uint8)
    sizes = np.array(lengths, np.int64)
    store = TokenStore(np.arange(total, dtype=np.int32), mask, sizes, sizes * 0, np.zeros(1, ROW), {})
    starts = np.cumsum(sizes) - sizes
    order = rng.permutation(len(lengths))[: max(1, len(lengths) - 2)]
    columns = gather(store, order, np.array([1, len(order) - 1] if len(order) > 1 else [1]), starts, 3)
    position = 0
    for index in order.tolist():
        ids = np.arange(starts[index], starts[index] + lengths[index])
        own = slice(position, position + lengths[index])
        assert columns.input_ids[own].tolist() == ids.tolist()
        assert columns.loss_mask[own].tolist() == [*mask[ids[1:]].tolist(), 0]
        position += lengths[index]
    assert len(columns.input_ids) == len(columns.loss_mask) == position == columns.token_offsets[-1]
