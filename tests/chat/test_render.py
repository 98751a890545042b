"""Turns are found in any template: trained text starts after the serving prompt, closes with its turn, nothing is lost."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.chats import assistant, call, conversation, result, served_prompts, shapes, system, user

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.errors import DataError, RowError
from sft_hydra.schema.data import MultiTurn, Reasoning

TEMPLATES = Path(__file__).parent / "templates"
CLOSINGS = {
    "llama3": ("<|eot_id|>",),
    "gemma": ("<end_of_turn>\n",),
    "phi": ("<|end|>", "<|end|></s>"),
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "gpt_oss": ("<|return|>", "<|call|>"),
    "mistral": ("</s>",),
    "parts": ("</s>\n",),
}
REFUSED = {  # what a template cannot say, it must be told so
    "gemma": {"tools", "tools_multi", "tools_reasoning"},
    "parts": {"tools", "tools_multi", "tools_reasoning"},
    "deepseek": {"tools", "tools_multi", "tools_reasoning"},  # it prints no tool definitions
    "llama3": {"tools_multi", "tools_reasoning"},  # what stands beside a call is not printed
    "mistral": {"tools_multi", "tools_reasoning"},
    "gpt_oss": {"tools_multi"},
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
NOW = datetime(2026, 1, 2)


@pytest.fixture(params=sorted(CLOSINGS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def renderer(name: str) -> Renderer:
    return Renderer((TEMPLATES / f"{name}.jinja").read_text(), dict(TOKENS), now=NOW)


@pytest.mark.parametrize("shape", sorted(shapes()))
def test_trained_text_follows_the_serving_prompt_and_closes(name: str, renderer: Renderer, shape: str) -> None:
    talk = conversation(shapes()[shape])
    if shape in REFUSED.get(name, ()):
        with pytest.raises(RowError, match=r"does not render tool|leaves out the|cannot render this turn"):
            renderer.sequences(talk)
        return
    prompts = served_prompts(renderer, talk)
    learned = ""
    for sequence in renderer.sequences(talk):
        position = 0
        for chunk, trained in zip(sequence.chunks, sequence.trained, strict=True):
            if trained:
                assert sequence.text[:position] in prompts
                assert chunk.endswith(CLOSINGS[name])
                learned += chunk
            position += len(chunk)
    for message in talk.messages:
        said = [message["content"], message.get("reasoning_content", "")]
        if message["role"] == "assistant" and "tool_calls" not in message:
            assert all(learned.count(text) == 1 for text in said if text)
        elif message["role"] in ("user", "tool", "system"):
            assert message["content"] not in learned


def test_turns_by_index_with_results_inside_the_calling_turn_are_found() -> None:
    source = """{%- for i in range(messages | length) %}{% set m = messages[i] %}
{%- if m.role != 'tool' %}{{ '<' ~ m.role ~ '>' ~ m.content }}
{%- for c in m.tool_calls or [] %}{{ '[' ~ c.function.name ~ (c.function.arguments | tojson) ~ ']' }}
{%- set ns = namespace(j=i + 1) %}
{%- for k in range(i + 1, messages | length) %}{% if k == i + 1 and messages[k].role == 'tool' %}{% set m2 = messages[k] %}
{{- '{' ~ m2.content ~ '}' }}{% endif %}{% endfor %}{% endfor %}{{ '</s>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""
    renderer = Renderer(source)
    talk = conversation({"messages": [user("Rain?"), call(), result("sun"), assistant("No rain.")]})
    found = [
        chunk for s in renderer.sequences(talk) for chunk, trained in zip(s.chunks, s.trained, strict=True) if trained
    ]
    assert not any("sun" in chunk for chunk in found)
    assert any("weather" in chunk for chunk in found)


def test_real_conversations_in_the_real_templates(shared: Path) -> None:
    checked = 0
    for name in ("qwen3", "nemotron3_nano", "nemotron3_super"):
        renderer = Renderer((shared / "assets" / "tokenizers" / name / "chat_template.jinja").read_text())
        for talk in _real_conversations(shared):
            prompts = served_prompts(renderer, talk)
            for sequence in renderer.sequences(talk):
                position = 0
                for chunk, trained in zip(sequence.chunks, sequence.trained, strict=True):
                    if trained:
                        assert sequence.text[:position] in prompts, (name, talk.origin)
                        assert chunk.endswith("<|im_end|>\n")
                        checked += 1
                    position += len(chunk)
    assert checked > 1000


def _real_conversations(shared: Path, each: int = 16) -> Iterator[Any]:
    for path in sorted((shared / "assets" / "chat").glob("*.jsonl")):
        lines = path.read_text().splitlines()
        for line in lines[:: max(len(lines) // each, 1)]:
            if len(line) < 20_000:
                yield conversation(json.loads(line))


def test_rows_without_reasoning_are_one_sequence_only_where_history_stays(shared: Path) -> None:
    talk = conversation(shapes()["multi"])
    counts = {}
    for name in ("qwen3", "nemotron3_nano"):
        source = (shared / "assets" / "tokenizers" / name / "chat_template.jinja").read_text()
        for policy in MultiTurn:
            counts[name, policy.value] = len(Renderer(source, multi_turn=policy).sequences(talk))
    assert counts["nemotron3_nano", "auto"] == 1
    assert counts["qwen3", "auto"] == 3
    assert all(counts[name, "one"] == 1 and counts[name, "split"] == 3 for name in ("qwen3", "nemotron3_nano"))


def test_reasoning_policies(shared: Path) -> None:
    source = (shared / "assets" / "tokenizers" / "nemotron3_nano" / "chat_template.jinja").read_text()
    talk = conversation(shapes()["reasoning_multi"])
    split = Renderer(source).sequences(talk)
    assert ["Two and two." in s.text for s in split] == [True, False]
    assert [sum(s.trained) for s in split] == [1, 1]
    (kept,) = Renderer(source, reasoning=Reasoning.keep).sequences(talk)
    assert "Two and two." in kept.text
    assert "Check again." in kept.text
    assert sum(kept.trained) == 2
    (dropped,) = Renderer(source, reasoning=Reasoning.drop).sequences(talk)
    assert "Two and two." not in dropped.text
    assert sum(dropped.trained) == 2


def test_keep_is_refused_where_the_template_drops_history_reasoning(shared: Path) -> None:
    source = (shared / "assets" / "tokenizers" / "qwen3" / "chat_template.jinja").read_text()
    with pytest.raises(DataError, match=r"data\.reasoning=keep"):
        Renderer(source, reasoning=Reasoning.keep)


def test_reasoning_goes_after_a_prompt_that_opens_it() -> None:
    source = """{% for m in messages %}{% if m.role == 'user' %}{{ '<U>' ~ m.content }}{% else %}
{{- '<A>' ~ m.content.split('</think>')[-1] ~ '</s>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"""
    talk = conversation(shapes()["reasoning_multi"])
    first, second = Renderer(source).sequences(talk)
    assert first.chunks == ["<U>2+2?<A><think>\n", "Two and two.\n</think>\n\nIt is 4.</s>"]
    assert second.chunks == ["<U>2+2?<A>It is 4.</s><U>Sure?<A><think>\n", "Check again.\n</think>\n\nYes.</s>"]


def test_a_template_without_a_place_for_reasoning_rejects_such_rows() -> None:
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content.split('</think>')[-1] ~ '\n' }}{% endfor %}"
    renderer = Renderer(source + "{% if add_generation_prompt %}assistant: {% endif %}")
    with pytest.raises(RowError) as caught:
        renderer.sequences(conversation(shapes()["reasoning"]))
    assert caught.value.reason == "reasoning"
    assert renderer.sequences(conversation(shapes()["multi"]))


def test_a_template_that_cannot_answer_is_an_error_with_its_reason() -> None:
    with pytest.raises(DataError, match="no chats today"):
        Renderer("{{ raise_exception('no chats today') }}")
    with pytest.raises(DataError, match="cannot render a question and its answer"):
        Renderer("always the same")


def test_whatever_the_template_refuses_is_a_reject_with_its_message() -> None:
    renderer = Renderer((TEMPLATES / "gemma.jinja").read_text(), dict(TOKENS))
    with pytest.raises(RowError, match="roles must alternate") as caught:
        renderer.sequences(conversation({"messages": [user("a"), user("b"), assistant("c")]}))
    assert caught.value.reason == "template"


def test_message_weight_zero_is_context() -> None:
    renderer = Renderer((TEMPLATES / "llama3.jinja").read_text(), dict(TOKENS))
    talk = conversation(
        {"messages": [user("a"), assistant("wrong", weight=0), user("b"), assistant("right", weight=1)]}
    )
    (sequence,) = renderer.sequences(talk)
    trained = [chunk for chunk, flag in zip(sequence.chunks, sequence.trained, strict=True) if flag]
    assert trained == ["right<|eot_id|>"]
    assert "wrong" in sequence.text


def test_what_a_template_does_not_print_beside_a_call_rejects_the_row() -> None:
    renderer = Renderer((TEMPLATES / "llama3.jinja").read_text(), dict(TOKENS))
    rows = {"content": call("Let me see."), "reasoning": {**call(), "reasoning_content": "I must look."}}
    for name, message in rows.items():
        with pytest.raises(RowError, match=f"leaves out the {name}") as caught:
            renderer.sequences(conversation({"messages": [user("x"), message, result("y"), assistant("z")]}))
        assert caught.value.reason == "template_drops"
    assert renderer.sequences(conversation({"messages": [user("x"), call(), result("y"), assistant("z")]}))


def test_content_cannot_reach_out_of_the_sandbox() -> None:
    source = (TEMPLATES / "llama3.jinja").read_text() + "{{ ''.__class__.__mro__ }}"
    with pytest.raises(DataError):
        Renderer(source, dict(TOKENS))
    evil = "{{ ''.__class__ }}{% for x in y %}"
    (sequence,) = Renderer((TEMPLATES / "llama3.jinja").read_text(), dict(TOKENS)).sequences(
        conversation({"messages": [system(evil), user(evil), assistant(evil)]})
    )
    assert sequence.text.count(evil) == 3


def test_passthrough_joins_contents_and_trains_the_assistant() -> None:
    (sequence,) = Renderer(None).sequences(conversation({"messages": [user("Q: x\n"), assistant("A: y")]}))
    assert list(zip(sequence.chunks, sequence.trained, strict=True)) == [("Q: x\n", False), ("A: y", True)]


@pytest.mark.parametrize("name", ["qwen3", "nemotron3_nano"])
def test_prompts_are_those_of_transformers(shared: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = shared / "assets" / "tokenizers" / name
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = ChatTokenizer(folder, (folder / "chat_template.jinja").read_text())
    renderer = Renderer.of(ours)
    assert (ours.eos_id, ours.pad_id, ours.vocab_size) == (theirs.eos_token_id, theirs.pad_token_id, len(theirs))
    for talk in [*_real_conversations(shared, each=4), *(conversation(row) for row in shapes().values())]:
        for thinking in (False, True):
            before = talk.messages[: max(i for i, m in enumerate(talk.messages) if m["role"] == "assistant")]
            text = renderer.prompt_text(before, talk.tools, thinking)
            kwargs = {"add_generation_prompt": True, "enable_thinking": thinking}
            assert text == theirs.apply_chat_template(before, tools=talk.tools, tokenize=False, **kwargs)
            ids = theirs.apply_chat_template(before, tools=talk.tools, tokenize=True, return_dict=True, **kwargs)
            assert ours.encode(text) == ids["input_ids"]
