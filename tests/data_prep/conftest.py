"""Fixtures of the data tests: the bundled tokenizer, real ones, and small prepared sets."""

from pathlib import Path

import pytest
from support.chats import data_cfg

from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return load_tokenizer(data_cfg(tmp_path_factory.mktemp("bundled")))


@pytest.fixture(scope="session", params=["qwen3", "nemotron3_nano"])
def real(request: pytest.FixtureRequest, shared: Path) -> ChatTokenizer:
    folder = shared / "assets" / "tokenizers" / request.param
    return ChatTokenizer(folder, (folder / "chat_template.jinja").read_text())
