"""The reference recipe's own ids and masks, one conversation at a time and through the whole preparation."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.chats import all_sequences, data_cfg, write_jsonl

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.errors import RowError
from sft_hydra.schema.data import SourceConfig


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    folder = shared / "goldens" / "nano3"
    inputs, expected = ((folder / name).read_text().splitlines() for name in ("inputs.jsonl", "expected.jsonl"))
    return [(json.loads(a), json.loads(b)) for a, b in zip(inputs, expected, strict=True)]


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> ChatTokenizer:
    template = (shared / "goldens" / "nano3" / "chat_template.jinja").read_text()
    return ChatTokenizer(shared / "assets" / "tokenizers" / "qwen3", template)


def test_every_held_case_has_the_expected_ids_and_mask(cases: Any, tokenizer: ChatTokenizer) -> None:
    renderer = Renderer.of(tokenizer)
    held = 0
    for case, expected in cases:
        if expected["hold_to"] and expected["status"] == "ok":
            talk = to_conversation(case["row"], SourceConfig(), "golden", case["id"])
            found = []
            for sequence in renderer.sequences(talk):
                parts = [
                    (tokenizer.encode(chunk), flag)
                    for chunk, flag in zip(sequence.chunks, sequence.trained, strict=True)
                ]
                ids = [id_ for part, _ in parts for id_ in part]
                found.append({"input_ids": ids, "loss_mask": [int(flag) for part, flag in parts for _ in part]})
            assert found == expected["sequences"], case["id"]
            held += 1
    assert held == 76


def test_rows_that_the_recipe_cannot_read_are_rejected_or_rendered_never_lost(
    cases: Any, tokenizer: ChatTokenizer
) -> None:
    renderer = Renderer.of(tokenizer)
    reasons = set()
    for case, _ in cases:
        try:
            found = renderer.sequences(to_conversation(case["row"], SourceConfig(), "golden", case["id"]))
        except RowError as problem:
            reasons.add(problem.reason)
        else:
            assert all(any(sequence.trained) for sequence in found)
    assert reasons == {"no_messages", "nothing_to_learn", "tool_arguments", "tool_calls", "tools"}


def test_the_whole_preparation_gives_the_same_multiset(cases: Any, shared: Path, tmp_path: Path) -> None:
    held = [(case, expected) for case, expected in cases if expected["hold_to"] and expected["status"] == "ok"]
    path = write_jsonl(tmp_path / "held.jsonl", [])
    path.write_text("".join(json.dumps(case["row"]) + "\n" for case, _ in held))
    cfg = data_cfg(tmp_path / "out", golden=path)
    cfg.tokenizer.path = str(shared / "assets" / "tokenizers" / "qwen3")
    cfg.tokenizer.chat_template = str(shared / "goldens" / "nano3" / "chat_template.jinja")
    cfg.data.allow_special_in_content = True  # as the recipe does; one row has <think> in a user text
    cfg.data.filters.tools = False  # some of these rows call tools that they do not define
    cfg.seq_length = 8192
    packed = prepare(cfg)
    assert packed.metadata["rejected"] == 0
    wanted = Counter(
        (tuple(s["input_ids"]), tuple(s["loss_mask"])) for _, expected in held for s in expected["sequences"]
    )
    assert Counter(all_sequences(packed)) == wanted
