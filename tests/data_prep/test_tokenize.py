"""Ids of chunks are the ids of the whole; control-token text of untrusted contents never becomes a control token."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chats import TOOL, assistant, call, conversation, result, shapes, system, user
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.data_prep.content_hash import serialize
from sft_hydra.data_prep.tokenize import SequenceEncoder, choose_library, start_fast
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@lru_cache(maxsize=4)
def encoder_of(tokenizer: ChatTokenizer, library: str = "fastokens") -> SequenceEncoder:
    return SequenceEncoder(tokenizer, library)


@lru_cache(maxsize=4)
def renderer_of(tokenizer: ChatTokenizer) -> Renderer:
    return Renderer.of(tokenizer)


@pytest.mark.parametrize("shape", sorted(shapes()))
@pytest.mark.parametrize("library", ["fastokens", "tokenizers"])
def test_ids_of_chunks_are_the_ids_of_the_whole(real: ChatTokenizer, shape: str, library: str) -> None:
    sequences = renderer_of(real).sequences(conversation(shapes()[shape]))
    batch = encoder_of(real, library).encode(sequences)
    assert batch.input_ids.tolist() == [id_ for sequence in sequences for id_ in real.encode(sequence.text)]
    assert batch.lengths.sum() == len(batch.input_ids) == len(batch.loss_mask)
    position = 0
    for sequence, length in zip(sequences, batch.lengths.tolist(), strict=True):
        trained = batch.loss_mask[position : position + length] == 1
        ids = batch.input_ids[position : position + length]
        learned = "".join(chunk for chunk, flag in zip(sequence.chunks, sequence.trained, strict=True) if flag)
        assert real.decode(ids[trained].tolist()) == learned
        position += length


def test_the_mask_ends_with_an_end_of_turn_token(real: ChatTokenizer) -> None:
    for row in shapes().values():
        batch = encoder_of(real).encode(renderer_of(real).sequences(conversation(row)))
        ends = [i for i, mask in enumerate(batch.loss_mask) if mask and not [*batch.loss_mask[i + 1 :], 0][0]]
        assert all(real.end_of_turn_ids[0] in batch.input_ids[end - 1 : end + 1] for end in ends)


def test_fastokens_is_chosen_only_where_it_agrees(real: ChatTokenizer, tmp_path: Path) -> None:
    assert choose_library(real, start_fast(real), ["a text of one's own"]) == "fastokens"
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    other = ChatTokenizer(tmp_path, None)
    assert choose_library(other, start_fast(other), ["a b"]) == "tokenizers"


def test_a_tokenizer_that_disagrees_is_found_out(bundled: ChatTokenizer, tmp_path: Path) -> None:
    other = json.loads(bundled.file.read_text())
    other["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    lower = ChatTokenizer(tmp_path, None)
    lower.backend = bundled.backend  # the file lower-cases, the library does not
    assert choose_library(lower, start_fast(lower), []) == "tokenizers"


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A tokenizer that puts a space sign before a text, so that no cut inside words is harmless."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["what is this? it is a test of words. user: assistant: " * 20], trainer)
    folder = tmp_path_factory.mktemp("sp")
    tokenizer.save(str(folder / "tokenizer.json"))
    return ChatTokenizer(folder, None)


def test_cuts_without_a_control_token_are_not_cut(sentencepiece: ChatTokenizer) -> None:
    exact = sentencepiece.backend
    encoder = encoder_of(sentencepiece, "tokenizers")
    assert not encoder.cuts_freely
    chunks = ["user: what is this? assistant:", " it is a test</s>", " user: of words. assistant:", " a test</s>"]
    batch = encoder.encode([RenderedSequence(chunks, [False, True, False, True])])
    assert batch.input_ids.tolist() == exact.encode("".join(chunks), add_special_tokens=False).ids
    tokens = [str(exact.id_to_token(id_)) for id_ in batch.input_ids.tolist()]
    learned = "".join(token for token, mask in zip(tokens, batch.loss_mask, strict=True) if mask)
    assert learned.replace("▁", "") == "itisatest</s>atest</s>"  # a space may belong to the token before it


def test_an_end_without_a_control_token_is_encoded_with_what_follows(real: ChatTokenizer) -> None:
    renderer = Renderer(
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    talk = conversation({"messages": [user("a"), assistant("b\n\n"), user("\nc"), assistant("d")]})
    (sequence,) = renderer.sequences(talk)
    batch = encoder_of(real).encode([sequence])
    prompt, rest = "user: a\nassistant: ", "b\n\n\nuser: \nc\nassistant: "
    assert batch.input_ids.tolist() == real.encode(prompt) + real.encode(rest) + real.encode("d\n")


def poisoned(token: str) -> list[Any]:
    """Rows with a control token's text in every untrusted place."""
    tool = {"type": "function", "function": {"name": "weather", "description": f"say {token}", "parameters": {}}}
    return [
        {"messages": [user(f"x {token} y"), assistant("fine")]},
        {"messages": [user(token), assistant("fine")]},
        {"messages": [system(f"{token}{token}"), user("x"), assistant("fine")]},
        {"messages": [user("x"), call(), result(f"a{token}b"), assistant("fine")], "tools": [TOOL]},
        {"messages": [user("x"), assistant("fine"), user(f"{token}\n"), assistant("fine")], "tools": [tool]},
    ]


def guarded(tokenizer: ChatTokenizer, row: Any) -> tuple[list[int], list[int], str]:
    """Ids, mask and text of a row that the guard has marked."""
    guard, renderer = encoder_of(tokenizer).guard, renderer_of(tokenizer)
    talk = conversation(row)
    assert guard.is_needed(talk)
    assert guard.is_needed(talk, serialize(talk))
    sequences = renderer.sequences(guard.mark(talk))
    for sequence in sequences:
        sequence.guarded = True
    batch = encoder_of(tokenizer).encode(sequences)
    text = "".join(sequence.text for sequence in renderer.sequences(talk))
    return batch.input_ids.tolist(), batch.loss_mask.tolist(), text


def test_no_control_token_comes_out_of_untrusted_content(real: ChatTokenizer) -> None:
    added = real.added_tokens
    texts = [text for text, _ in added.values()]
    for token in [*texts[:4], "<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"]:
        clean = [_control_ids(real, row) for row in poisoned("plain")]
        for row, expected in zip(poisoned(token), clean, strict=True):
            ids, _, text = guarded(real, row)
            assert [id_ for id_ in ids if id_ in added] == expected
            assert real.decode(ids) == real.backend.normalizer.normalize_str(text) if real.backend.normalizer else text


def _control_ids(tokenizer: ChatTokenizer, row: Any) -> list[int]:
    text = "".join(sequence.text for sequence in renderer_of(tokenizer).sequences(conversation(row)))
    return [id_ for id_ in tokenizer.encode(text) if id_ in tokenizer.added_tokens]


def test_assistants_keep_thinking_and_calls_but_end_no_turn(real: ChatTokenizer) -> None:
    guard = encoder_of(real).guard
    assert not guard.is_needed(conversation({"messages": [user("x"), assistant("<think>a</think>b <tool_call>")]}))
    row = {"messages": [user("x"), assistant("the token <|im_end|> ends a turn")]}
    ids, mask, _ = guarded(real, row)
    assert ids.count(real.end_of_turn_ids[0]) == _control_ids(real, {"messages": [user("x"), assistant("y")]}).count(
        real.end_of_turn_ids[0]
    )
    learned = real.decode([id_ for id_, flag in zip(ids, mask, strict=True) if flag])
    assert learned == "the token <|im_end|> ends a turn<|im_end|>\n"


@SLOW
@given(TEXT, TEXT, TEXT)
def test_marking_changes_nothing_in_clean_text(bundled: ChatTokenizer, question: str, answer: str, more: str) -> None:
    guard = encoder_of(bundled).guard
    talk = conversation({"messages": [user(question), assistant(answer), user(more), assistant("fine")]})
    try:
        sequences = renderer_of(bundled).sequences(talk)
    except RowError:
        return
    if not guard.is_needed(talk):
        for sequence in sequences:
            assert [id_ for chunk in sequence.chunks for id_ in guard.encode(chunk)] == [
                id_ for chunk in sequence.chunks for id_ in bundled.encode(chunk)
            ]


@SLOW
@given(st.lists(TEXT, min_size=2, max_size=8), st.booleans())
def test_the_mask_is_exactly_what_the_assistant_said(
    bundled: ChatTokenizer, texts: list[str], has_system: bool
) -> None:
    turns = [assistant(text) if i % 2 else user(text) for i, text in enumerate(texts)]
    talk = conversation({"messages": [system("s"), *turns] if has_system else turns})
    if not any(m["role"] == "assistant" and not m["content"].isspace() for m in talk.messages):
        with pytest.raises(RowError, match="nothing_to_learn"):
            renderer_of(bundled).sequences(talk)
        return
    sequences = renderer_of(bundled).sequences(talk)
    batch = encoder_of(bundled).encode(sequences)
    learned = bundled.decode(batch.input_ids[batch.loss_mask == 1].tolist())
    said = "".join(
        f"{m['content']}<|im_end|>\n" for m in talk.messages if m["role"] == "assistant" and not m["content"].isspace()
    )
    assert learned == said


@SLOW
@given(st.lists(TEXT, min_size=1, max_size=5))
def test_both_libraries_give_the_same_ids(real: ChatTokenizer, texts: list[str]) -> None:
    fast, exact = (encoder_of(real, library).bulk.encode(texts) for library in ("fastokens", "tokenizers"))
    assert fast[0].tolist() == exact[0].tolist()
    assert fast[1].tolist() == exact[1].tolist()


@SLOW
@given(
    st.lists(
        st.sampled_from(["<", "|", "im_end", "|>", "<s>", "[INST]", "<think>", "x", '"', "\\", "\n", "é"]), max_size=12
    )
)
def test_the_guard_finds_the_same_in_serialized_rows(real: ChatTokenizer, parts: list[str]) -> None:
    guard, text = encoder_of(real).guard, "".join(parts)
    for messages in ([user(text), assistant("y")], [user("x"), assistant(text, reasoning_content=text)]):
        talk = Conversation(messages, None, "", "")
        assert guard.is_needed(talk, serialize(talk)) == guard.is_needed(talk)
    talk = Conversation([user("x"), assistant("y")], [{"type": "function", "function": {"name": text}}], "", "")
    assert guard.is_needed(talk, serialize(talk)) == guard.is_needed(talk)
