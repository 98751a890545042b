"""The hand-written packed set, and a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.shards import REJECTS, TALKS, packed_set

from sft_hydra.chat.tokenizer import BUNDLED, ChatTokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.schema.config import SftConfig

SEQ_LENGTH = 256
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(BUNDLED, (BUNDLED / "chat_template.jinja").read_text())


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, tokenizer: ChatTokenizer) -> PackedSet:
    return packed_set(tmp_path_factory.mktemp("packed"), TALKS, tokenizer, REJECTS)


@pytest.fixture
def cfg() -> SftConfig:
    cfg = SftConfig(name="looked-at", seq_length=SEQ_LENGTH)
    cfg.model.name = "tiny"
    return cfg


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium without a screen."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """open_page(path, scheme="light") -> a page; whatever it logs, throws or asks of the network fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_path(path: Path, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or complaints.append(request.url),
        )
        page.goto(path.as_uri())
        return page

    yield open_path
    for context in contexts:
        context.close()
    assert complaints == []
