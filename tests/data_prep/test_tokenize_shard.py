"""A fault of ours in one row rejects that row, names itself, and keeps the others."""

from pathlib import Path
from typing import Any

import pytest
from support.chats import assistant, data_cfg, rejects, user, write_jsonl

from sft_hydra.data_prep import filters
from sft_hydra.data_prep.prepare import prepare


def test_an_unforeseen_row_does_not_end_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = filters.Filters.check

    def fails(self: filters.Filters, conversation: Any) -> None:
        if conversation.messages[0]["content"] == "third":
            {}[conversation.messages[0]["content"]]
        check(self, conversation)

    monkeypatch.setattr(filters.Filters, "check", fails)
    rows = [{"messages": [user(text), assistant("yes")]} for text in ("first", "second", "third", "fourth")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    packed = prepare(data_cfg(tmp_path / "out", rows=path))
    assert packed.metadata["sources"][0]["kept"] == 3
    (entry,) = rejects(packed)
    assert (entry["origin"], entry["reason"]) == (f"{path}:3", "unforeseen")
    assert entry["detail"].startswith("KeyError: 'third' (tokenize_shard.py:")
