"""Fixtures of the data tests: the bundled tokenizer, real ones, and small prepared sets."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.chats import data_cfg, question, write_jsonl

from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.schema.config import SftConfig


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return load_tokenizer(data_cfg(tmp_path_factory.mktemp("bundled")))


@pytest.fixture(scope="session", params=["qwen3", "nemotron3_nano"])
def real(request: pytest.FixtureRequest, shared: Path) -> ChatTokenizer:
    folder = shared / "assets" / "tokenizers" / request.param
    return ChatTokenizer(folder, (folder / "chat_template.jinja").read_text())


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., SftConfig]:
    """`questions(100)`: the config of one source of so many different rows."""

    def make(count: int, name: str = "questions") -> SftConfig:
        path = write_jsonl(tmp_path / f"{name}.jsonl", [question(number) for number in range(count)])
        return data_cfg(tmp_path / "out", **{name: path})

    return make
