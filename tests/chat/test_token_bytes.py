"""Bytes of tokens are those of the text that was encoded, so that bits per byte mean the same for every tokenizer."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from sft_hydra.chat.token_bytes import token_bytes
from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig

TEXTS = ['How many letters has "robin"?\n\n', "  größer  als 東京 🙂\t", "def f(x):\n    return x ** 2\n"]


@pytest.mark.parametrize("name", ["demo", "qwen3", "nemotron3_nano"])
def test_sizes_add_up_to_the_text(name, request):
    path = name if name == "demo" else str(request.getfixturevalue("shared") / "assets/tokenizers" / name)
    cfg = SftConfig(model=ModelConfig(name="test"))
    cfg.tokenizer.path = path
    tokenizer = load_tokenizer(cfg)
    sizes = token_bytes(tokenizer, tokenizer.vocab_size + 5)
    assert len(sizes) == tokenizer.vocab_size + 5
    assert not sizes[-5:].any()
    for text in TEXTS:
        assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
    assert not sizes[tokenizer.end_of_turn_ids].any()


def test_sentencepiece_tokens(tmp_path):
    pieces = ["<unk>", "▁", "▁ab", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    sizes = token_bytes(ChatTokenizer(tmp_path, None), len(pieces))
    assert sizes[[1, 2, 3]].tolist() == [1, 3, 2]
    assert np.all(sizes[4:] == 1)
