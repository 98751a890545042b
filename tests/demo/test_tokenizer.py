"""The bundled tokenizer is what its script makes, loads with both libraries, and splits as the demo needs it."""

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from sft_hydra.demo.conversations import rows
from sft_hydra.demo.make_tokenizer import FOLDER, make


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_script_makes_these_bytes(tmp_path):
    make(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_both_libraries_agree(tokenizer):
    plain = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    text = '<|im_start|>user\nSpell "nut" 42 – 東京 🙂<|im_end|>\n'
    assert plain.encode(text).ids == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) <= 1000
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_markup_survives_where_control_tokens_are_skipped(tokenizer):
    text = "<think> a</think> 1<tool_call>{}</tool_call>"
    assert tokenizer.decode(tokenizer.encode(text + "<|im_end|>"), skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ('Spell "nut".', ["Spell", ' "', "n", "u", "t", '"', "."]),
        ("NUT", ["N", "U", "T"]),
        ("What is 12 + 34?", ["What", " is", " 12", " +", " 34", "?"]),
        ('{"name": "calc", "arguments": {"word": "nut"', None),
    ],
)
def test_pieces(tokenizer, text, pieces):
    got = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    if pieces is None:
        assert "calc" in got
        assert "word" in got
        assert got[-4:] == ["n", "u", "t", '"']
    else:
        assert got == pieces


def test_a_turn_is_rendered_as_it_was_served(tokenizer):
    """The prompt of every assistant turn is a prefix of the whole conversation."""
    for row in rows("heldout"):
        messages, tools = row["messages"], row.get("tools")
        whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = tokenizer.apply_chat_template(
                    messages[:i], tools=tools, tokenize=False, add_generation_prompt=True
                )
                assert whole.startswith(prompt)


def test_template_takes_arguments_as_text_or_object_and_bare_tools(tokenizer):
    tool = {"name": "calc", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}}

    def rendered(tool, arguments):
        call = {"type": "function", "function": {"name": "calc", "arguments": arguments}}
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)

    text = rendered(tool, {"a": 1, "b": 2})
    assert text == rendered({"type": "function", "function": tool}, '{"a": 1, "b": 2}')
    assert "Tools: calc(a, b)<|im_end|>" in text
    assert '<tool_call>{"name": "calc", "arguments": {"a": 1, "b": 2}}</tool_call><|im_end|>' in text


def test_reasoning_is_left_out_on_request(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "reasoning_content": "n u", "content": "2"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.endswith("<|im_start|>assistant\n<think> n u</think> 2<|im_end|>\n")
    text = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    assert text.endswith("<|im_start|>assistant\n2<|im_end|>\n")
