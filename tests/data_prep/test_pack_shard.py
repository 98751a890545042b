"""Sequences are gathered in the packed order, and their mask is shifted inside each."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_hydra.data.shard_file import ROW_GROUP, ShardWriter
from sft_hydra.data_prep import pack_shard
from sft_hydra.data_prep.pack_shard import gather
from sft_hydra.data_prep.token_store import ROW, TokenStore


@settings(deadline=None)
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


def test_a_file_written_in_pieces_is_the_file_of_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 700)
    ids = rng.integers(0, 99, lengths.sum()).astype(np.int32)
    store = TokenStore(ids, (ids % 2).astype(np.uint8), lengths, lengths * 0, np.zeros(1, ROW), {})
    order, sizes = rng.permutation(700), np.full(350, 2)
    files = []
    for pieces in (ROW_GROUP, 1000 * ROW_GROUP):
        monkeypatch.setattr(pack_shard, "WRITTEN_TOGETHER", pieces)
        writer = ShardWriter(tmp_path / f"{pieces}.parquet")
        pack_shard._write(writer, store, order, sizes, np.cumsum(lengths) - lengths, 0, [])
        writer.close()
        files.append(writer.path.read_bytes())
    assert files[0] == files[1]
