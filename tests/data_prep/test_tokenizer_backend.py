"""Packed ids are those of transformers' AutoTokenizer of the rendered text, for tokenizers of every kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chats import assistant, conversation, data_cfg, sequences, user, write_jsonl
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.served_tokenizer import may_differ
from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.tokenize import WHOLE
from sft_hydra.schema.data import SplitConfig

SPECIAL = ["<unk>", "<s>", "</s>"]
TEXTS = [
    "I am a model. Who are you? One word: yes, no.",
    "USER: hello ASSISTANT: Hi there! café naïve 12",
    "def f(x):",
] * 20
INLINE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% else %}"
    "ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LINES = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
ROWS = [
    [user("who are you"), assistant("I am a model"), user("Who?"), assistant("model I am")],
    [user("One"), assistant("Yes")],
    [user("  café  "), assistant("naïve 12")],
    [user("a\nb"), assistant("def f(x):\n    return x")],
    [user("x"), assistant("1")],
]
PLAIN, ESCAPED = "hi <:s> there", "hi </s> there"  # the second spells a control token

Build = tuple[Any, Any, Any, str]
BYTE_LEVEL = {"special_tokens": SPECIAL, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}


def metaspace(scheme: str, split: bool) -> Build:
    return (
        models.BPE(unk_token="<unk>"),
        None,
        pre_tokenizers.Metaspace(prepend_scheme=scheme, split=bool(split)),
        INLINE,
    )


def unigram(scheme: str) -> Build:
    return models.Unigram(), normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme=scheme), INLINE


SPACES = normalizers.Replace(" ", "▁")
KINDS: dict[str, Callable[[], Build]] = {
    **{f"{s}_{split}": lambda s=s, split=split: metaspace(s, split) for s in ("first", "always", "never") for split in (0, 1)},  # type: ignore[misc]
    "prepend": lambda: (models.BPE(), normalizers.Sequence([normalizers.Prepend("▁"), SPACES]), None, INLINE),
    "replace": lambda: (models.BPE(), SPACES, pre_tokenizers.Split(" ", "merged_with_previous"), INLINE),
    "prefix_space": lambda: (models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=True), INLINE),
    "byte_level": lambda: (models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=False), LINES),
    "lower": lambda: (models.BPE(), normalizers.Lowercase(), pre_tokenizers.ByteLevel(add_prefix_space=False), LINES),
    "unigram_always": lambda: unigram("always"),
    "unigram_first": lambda: unigram("first"),
    "wordpiece": lambda: (
        models.WordPiece(unk_token="<unk>"), normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), INLINE,
    ),
}  # fmt: skip


def write_tokenizer(folder: Path, built: Build, added: tuple[Any, ...] = (), **config: Any) -> Path:
    model, normalizer, before, template = built
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if before is not None:
        tokenizer.pre_tokenizer = before
    if isinstance(model, models.Unigram):
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=150,
            special_tokens=SPECIAL,
            unk_token="<unk>",
            initial_alphabet=list("<>/:s"),
            show_progress=False,
        )
    elif isinstance(model, models.WordPiece):
        trainer = trainers.WordPieceTrainer(
            vocab_size=250, special_tokens=SPECIAL, initial_alphabet=list("<>/:s"), show_progress=False
        )
    else:
        alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "▁", " ", "\n"]
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens(list(added))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "chat_template": template, **config}))
    return folder


def prepared(folder: Path, tokenizer: Path, rows: list[Any]) -> PackedSet:
    cfg = data_cfg(folder, rows=write_jsonl(folder / "rows.jsonl", [{"messages": row} for row in rows]))
    cfg.tokenizer.path = str(tokenizer)
    cfg.data.split = SplitConfig(train=1, valid=0, test=0)
    return prepare(cfg)


def wanted(folder: Path, rows: list[Any]) -> list[tuple[int, ...]]:
    """What transformers makes of the rendered texts."""
    cfg = data_cfg(folder)
    cfg.tokenizer.path = str(folder)
    renderer = Renderer.of(load_tokenizer(cfg), cfg.data)
    texts = [sequence.text for row in rows for sequence in renderer.sequences(conversation({"messages": row}))]
    served = AutoTokenizer.from_pretrained(str(folder))
    return sorted(tuple(served(text, add_special_tokens=False)["input_ids"]) for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", KINDS[kind]())
    packed = prepared(tmp_path / "out", folder, ROWS)
    assert [ids for ids, _ in sequences(packed)] == wanted(folder, ROWS)
    learned = [id_ for ids, mask in sequences(packed) for id_, one in zip(ids, mask, strict=True) if one]
    answers = sum(message["role"] == "assistant" for row in ROWS for message in row)
    assert learned.count(packed_end(folder)) == answers  # each with its end of turn
    assert all(mask[0] == 0 and sum(mask) >= 2 for _, mask in sequences(packed))


def packed_end(folder: Path) -> int:
    found = ChatTokenizer(folder, None).backend.token_to_id("</s>")
    assert found is not None
    return found


@pytest.mark.parametrize(
    "kind", ["first_0", "always_1", "never_0", "prepend", "prefix_space", "byte_level", "wordpiece"]
)
def test_control_text_in_a_content_changes_only_itself(tmp_path: Path, kind: str) -> None:
    """The ids around it are those of the same text with another sign in its place."""
    folder = write_tokenizer(tmp_path / "tokenizer", KINDS[kind]())
    found = []
    for text in (PLAIN, ESCAPED):
        rows = [[user(text), assistant("Yes")], *ROWS[:1]]
        packed = prepared(tmp_path / text.replace("/", "_"), folder, rows)
        assert packed.metadata["sources"][0]["rejected"] == 0
        (ids,) = [
            ids for ids, _ in sequences(packed) if ids.count(packed_end(folder)) == (2 if kind == "byte_level" else 1)
        ]
        found.append(ids)
    plain, escaped = found
    assert plain == wanted(folder, [[user(PLAIN), assistant("Yes")]])[0]
    assert len(escaped) == len(plain)
    assert sum(a != b for a, b in zip(plain, escaped, strict=True)) == 1


def test_added_tokens_that_reach_beyond_themselves(tmp_path: Path) -> None:
    added = (
        AddedToken("<mask>", lstrip=True, special=True, normalized=False),
        AddedToken("<gap>", rstrip=True, special=True, normalized=False),
        AddedToken("lone", single_word=True, special=True, normalized=False),
    )
    built = KINDS["byte_level"]()
    template = LINES.replace("{{ eos_token }}", " <mask> <gap> lone{{ eos_token }}")
    folder = write_tokenizer(tmp_path / "tokenizer", (*built[:3], template), added)
    packed = prepared(tmp_path / "out", folder, ROWS)
    assert packed.metadata["tokenizer"]["library"] == WHOLE
    assert [ids for ids, _ in sequences(packed)] == wanted(folder, ROWS)
    tokens = {text: ChatTokenizer(folder, None).backend.token_to_id(text) for text in ("<mask>", "<gap>", "lone")}
    rows = [[user("alone lone <mask> x <gap> y"), assistant("Yes")]]
    (guarded,) = [ids for ids, _ in sequences(prepared(tmp_path / "guarded", folder, rows))]
    assert all(guarded.count(id_) == 2 for id_ in tokens.values())  # those of the template, after either message


def test_truncation_in_the_file_cuts_nothing(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", KINDS["byte_level"]())
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert [ids for ids, _ in sequences(prepared(tmp_path / "out", folder, ROWS))] == wanted(folder, ROWS)


def test_which_tokenizers_transformers_may_build_otherwise(tmp_path: Path) -> None:
    built = KINDS["byte_level"]
    cases: dict[str, tuple[dict[str, Any], bool]] = {
        "as_it_is": ({}, False),
        "named": ({"tokenizer_class": "LlamaTokenizer"}, True),
        "more_tokens": ({"eos_token": "<|end|>"}, True),
        "extra": ({"additional_special_tokens": ["<x>"]}, True),
        "flags": ({"added_tokens_decoder": {"2": {"content": "</s>", "lstrip": True, "special": True}}}, True),
        "split": ({"split_special_tokens": True}, True),
    }
    for name, (config, expected) in cases.items():
        folder = write_tokenizer(tmp_path / name, built(), **config)
        assert may_differ(ChatTokenizer(folder, None)) is expected, name
    (tmp_path / "as_it_is" / "config.json").write_text('{"model_type": "phi3"}')
    assert may_differ(ChatTokenizer(tmp_path / "as_it_is", None))


@pytest.mark.slow  # reads a large vocabulary four times
def test_what_qwen_s_class_builds_is_what_we_think(shared: Path) -> None:
    folder = shared / "assets" / "tokenizers" / "qwen3"
    assert not may_differ(ChatTokenizer(folder, None))
    served = json.loads(AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer.to_str())
    own = json.loads((folder / "tokenizer.json").read_text())
    assert served["normalizer"] == own["normalizer"]
    assert served["added_tokens"] == own["added_tokens"]
    first, last = served["pre_tokenizer"]["pretokenizers"]
    assert first["pattern"] == own["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    assert (last["add_prefix_space"], last["use_regex"]) == (False, False)


@pytest.mark.slow  # transformers is asked in a process of its own
@pytest.mark.parametrize(
    "config",
    [{"tokenizer_class": "LlamaTokenizer", "legacy": False}, {"eos_token": "<|end|>"}],
    ids=["class", "tokens"],
)
def test_a_tokenizer_that_transformers_builds_otherwise(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", KINDS["prepend"](), **config)
    packed = prepared(tmp_path / "out", folder, ROWS)
    assert [ids for ids, _ in sequences(packed)] == wanted(folder, ROWS)
    assert not (packed.folder / "served_tokenizer.json").exists()
