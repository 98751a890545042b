"""Makes the bundled tokenizer: `python -m sft_hydra.demo.make_tokenizer [folder]`.

A byte-level BPE over the bundled conversations as the bundled template renders them. What lets a tiny model learn
quickly is the splitting: letters of a word in quotes stand apart, so do capitals; a number of two digits is one token.
Invariant: the same code gives the same bytes (a test compares them with the files in `tokenizer/`).
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sft_hydra.demo.conversations import rows

FOLDER = Path(__file__).parent / "tokenizer"
TEMPLATE = FOLDER / "chat_template.jinja"

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
]  # text of an answer: kept when control tokens are skipped
VOCAB_SIZE = 768
PIECES = "|".join(
    [
        r" ?\d{1,2}",
        r'[a-z](?=[a-z]*"(?!:|, "arguments))',  # letters of a word before a quote, but not of a JSON key or a tool's name
        r" ?[A-Z][a-z]+",
        r"[A-Z]",
        r" ?[a-z]+",
        r" ?[^\sA-Za-z\d]",
        r"\s",
    ]
)


def make(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKUP),
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in MARKUP])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _texts() -> Iterator[str]:
    """The rendered conversations, cut at the tokens that are not for the BPE to learn."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    cut = re.compile("|".join(re.escape(token) for token in CONTROL + MARKUP))
    for part in ("train", "drill"):
        for row in rows(part):
            text = template.render(messages=row["messages"], tools=row.get("tools"))
            yield from (piece for piece in cut.split(text) if piece)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
