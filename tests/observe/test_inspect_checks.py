"""What looks wrong is found, what is right is not flagged; roles and bytes are read off the tokens."""

from pathlib import Path

import numpy as np
import pytest
from support.shards import TALKS, Talk, packed_set

from sft_hydra.chat.token_text import ROLES, TokenText
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.observe.inspector import InspectorPage
from sft_hydra.runners.inspect.checks import CHECKS, suspicious
from sft_hydra.runners.inspect.page import chosen_rows, inspector_page, supervised_tokens
from sft_hydra.schema.config import SftConfig


@pytest.fixture
def page(cfg: SftConfig, packed: PackedSet, tokenizer: ChatTokenizer) -> InspectorPage:
    return inspector_page(cfg, packed, tokenizer)


def names(flags: int) -> set[str]:
    return {name for bit, (name, _) in enumerate(CHECKS) if flags >> bit & 1}


def test_each_kind_of_suspicious_conversation_is_flagged(page: InspectorPage) -> None:
    flagged = [names(flags) for flags in page.conversations.flags.tolist()]
    assert flagged == [
        set(),
        set(),
        {"nothing trained"},
        {"all trained"},
        {"no end of turn", "cut off"},
        {"repeats itself"},
    ]
    assert page.conversations.repetition[5] > 80


def test_without_known_ends_of_turns_nothing_is_said_of_ends(packed: PackedSet) -> None:
    row = packed.row("train", 2)
    offsets = np.array([0, len(row.input_ids)])
    flags, _ = suspicious(row.input_ids, supervised_tokens(row), offsets, [], [])
    assert names(int(flags[0])) == set()


def test_a_span_inside_a_conversation_must_end_its_turn(tokenizer: ChatTokenizer) -> None:
    ids = np.array(tokenizer.encode("<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nno<|im_end|>\n"), np.int32)
    end = tokenizer.end_of_turn_ids[0]
    learned = np.zeros(len(ids), bool)
    first = int(np.flatnonzero(ids == end)[0])
    learned[first - 1 : first + 1] = True
    spaces = [int(token) for token in ids if not tokenizer.decode([int(token)]).strip()]
    assert names(int(suspicious(ids, learned, np.array([0, len(ids)]), [end], spaces)[0][0])) == set()
    learned[first] = False
    assert names(int(suspicious(ids, learned, np.array([0, len(ids)]), [end], spaces)[0][0])) == {"no end of turn"}


def test_the_page_has_the_masks_and_borders_of_the_shards(page: InspectorPage, tokenizer: ChatTokenizer) -> None:
    talks = page.conversations
    assert np.diff(talks.offsets).tolist() == [
        len(tokenizer.encode(t.prompt) + tokenizer.encode(t.answer)) for t in TALKS
    ]
    assert talks.row.tolist() == [talk.row for talk in TALKS]
    for talk, start, end in zip(TALKS, talks.offsets[:-1], talks.offsets[1:], strict=True):
        answer = tokenizer.encode(talk.answer)
        learned = talks.input_ids[start:end][talks.supervised[start:end]].tolist()
        assert learned == (answer if talk.prompt else answer[1:])  # nothing can predict the first token of all


def test_turns_are_found_by_their_headers(page: InspectorPage) -> None:
    first_row = page.conversations.turn_role[:4].tolist()
    assert [ROLES[role] for role in first_row] == ["user", "assistant"] * 2


@pytest.mark.parametrize("folder", ["qwen3", "nemotron3_nano"])
def test_bytes_of_tokens_join_to_the_text(shared: Path, folder: str) -> None:
    tokenizer = ChatTokenizer(shared / "assets/tokenizers" / folder, None)
    words = TokenText(tokenizer)
    text = "héllo 👩‍👩‍👧 日本語 <|im_start|>user\nx<|im_end|>\n\t\x00 end"
    ids = tokenizer.encode(text)
    assert b"".join(words.bytes_of(token) for token in ids).decode() == text
    starts, roles = words.turns(np.array(ids, np.int32))
    assert [ROLES[role] for role in roles] == ["user"]
    assert tokenizer.decode([ids[starts[0]]]) == "<|im_start|>"


def test_a_large_split_is_shown_by_rows_spread_over_it(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    talks = [
        Talk("<|im_start|>user\nhi<|im_end|>\n", f"{row}<|im_end|>\n", row=row) for row in range(400) for _ in range(2)
    ]
    packed = packed_set(tmp_path, talks, tokenizer, [])
    rows = chosen_rows(packed, "train", conversations=80)
    assert len(rows) == 40
    assert (rows[0], rows[-1]) == (0, 399)
    assert np.ptp(np.diff(rows)) <= 1
    assert chosen_rows(packed, "train", conversations=10_000).tolist() == list(range(400))
