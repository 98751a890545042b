"""The memory limit of a conversation counts from what the process has when it begins."""

import mmap

import pytest

from sft_hydra.chat.resource_limits import LimitError, limit_resources

GIB = 1 << 30


def test_memory_taken_since_the_last_conversation_does_not_count() -> None:
    with limit_resources():
        pass
    taken = mmap.mmap(-1, 5 * GIB)  # address space only: no page is touched
    try:
        with limit_resources():
            assert len(mmap.mmap(-1, GIB)) == GIB
        with pytest.raises(LimitError, match="more than 4 GiB"), limit_resources():
            bytearray(6 * GIB)
    finally:
        taken.close()
