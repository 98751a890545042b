"""The inspector's page in a real browser: what it shows is what the shards hold, by mouse and by keys, in both themes."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from support.shards import GOOD, TALKS, Talk, packed_set

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.observe.inspector import write_inspector
from sft_hydra.runners.inspect.page import inspector_page
from sft_hydra.schema.config import SftConfig


@pytest.fixture
def inspector(cfg: SftConfig, packed: PackedSet, tokenizer: ChatTokenizer, tmp_path: Path) -> Path:
    path = tmp_path / "inspect.html"
    write_inspector(path, inspector_page(cfg, packed, tokenizer))
    return path


@pytest.fixture
def page(inspector: Path, open_page: Any) -> Any:
    page = open_page(inspector)
    page.wait_for_selector("html[data-ready]")
    return page


def expect_found(page: Any, count: int) -> None:
    """Wait until so many conversations or rejected rows fit the filters."""
    page.wait_for_timeout(200)
    expect(page.locator("#found")).to_have_text(re.compile(rf"^\s*{count}\b"))


def read(page: Any, selector: str = "#detail .turns i") -> str:
    return str(page.evaluate("(s) => [...document.querySelectorAll(s)].map((e) => e.textContent).join('')", selector))


def order(page: Any, by: str) -> None:
    page.select_option("#sort", by)
    page.wait_for_timeout(100)
    page.keyboard.press("Escape")
    page.keyboard.press("g")


def test_a_conversation_is_shown_token_by_token(page: Any, tokenizer: ChatTokenizer) -> None:
    order(page, "packed")
    assert read(page) == GOOD.prompt + GOOD.answer
    assert read(page, "#detail .turns i.l") == GOOD.answer
    ids = tokenizer.encode(GOOD.prompt + GOOD.answer)
    assert page.locator("#detail .turns i").count() == len(ids)
    page.locator("#detail .turns i").nth(1).hover()
    card = page.locator("#card").inner_text()
    assert str(ids[1]) in card
    assert "no, context" in card
    assert page.locator("#detail .role").all_inner_texts()[0].startswith("user")


def test_half_characters_show_their_bytes(page: Any) -> None:
    order(page, "packed")
    assert page.locator("#detail .turns i[data-hex]").first.get_attribute("data-hex").startswith("f0")


def test_the_most_suspicious_come_first_and_say_why(page: Any) -> None:
    assert "Nothing is learned here." in read(page)
    assert "nothing trained" in page.locator("#detail .flag").inner_text()
    page.get_by_role("button", name="repeats itself").click()
    expect_found(page, 1)
    assert "the same words again" in read(page)
    assert " %)" in page.locator("#detail .flag").inner_text()


def test_search_and_filters(page: Any) -> None:
    page.fill("#search", "ZEBRA")
    expect_found(page, 1)
    assert "zebra" in read(page)
    page.get_by_role("button", name="Clear").click()
    expect_found(page, len(TALKS))
    page.get_by_role("button", name="plain").click()
    expect_found(page, 2)
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("length, from").fill("60")
    page.get_by_label("length, from").press("Tab")
    expect_found(page, 1)
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    page.get_by_label("share, to").fill("0")
    page.get_by_label("share, to").press("Tab")
    expect_found(page, 1)
    page.fill("#search", "no such words")
    expect_found(page, 0)
    assert "No conversation fits" in page.locator("#detail").inner_text()


def test_dragging_over_a_histogram_filters(page: Any) -> None:
    box = page.locator('[data-range="share"] .plot').bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 1, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.1, y, steps=4)
    page.mouse.up()
    expect_found(page, 1)
    assert "Nothing is learned here." in read(page)


def test_keys_lead_everywhere(page: Any) -> None:
    order(page, "packed")
    page.keyboard.press("j")
    expect(page.locator("#detail")).to_contain_text("2 plus 2")
    page.keyboard.press("k")
    expect(page.locator("#detail")).to_contain_text("Spell")
    page.keyboard.press("t")
    assert "trained" in page.locator("#card").inner_text()
    assert page.locator("#detail .here").inner_text().startswith("T")
    page.keyboard.press("]")
    expect(page.locator("#detail")).to_contain_text("2 plus 2")
    page.keyboard.press("2")
    page.keyboard.press("j")
    page.keyboard.press("l")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_contain_text("zebra")
    page.keyboard.press("/")
    page.keyboard.type("tea")
    expect_found(page, 1)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_packs_sources_and_rejects(page: Any) -> None:
    page.keyboard.press("2")
    assert page.locator("#packs .pack").count() == 4
    page.locator("#packs canvas").first.click(position={"x": 4, "y": 10})
    expect(page.locator("#detail")).to_contain_text("Spell")
    page.keyboard.press("3")
    assert [row.split("\t")[:2] for row in page.locator("#sources tbody tr").all_inner_texts()] == [
        ["plain", "2"],
        ["odd", "4"],
    ]
    page.keyboard.press("4")
    expect_found(page, 2)
    assert "<script>alert(1)</script>" in page.locator("#rejected").inner_text()
    page.get_by_role("button", name="overlong").click()
    expect_found(page, 1)
    assert "chats.jsonl:9" in page.locator("#rejected").inner_text()


def test_the_address_leads_back(page: Any, open_page: Any, inspector: Path) -> None:
    order(page, "packed")
    page.keyboard.press("G")
    expect(page.locator("#detail")).to_contain_text("the same words")
    anchor = page.url.partition("#")[2]
    again = open_page(inspector)
    again.goto(f"{inspector.as_uri()}#{anchor}")  # in the open page, ready or not
    expect(again.locator("#detail")).to_contain_text("the same words")
    again.reload()
    expect(again.locator("#detail")).to_contain_text("the same words")
    again.keyboard.press("k")
    expect(again.locator("#detail")).to_contain_text("without an end")


def test_light_and_dark(inspector: Path, open_page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(inspector, scheme) for scheme in ("light", "dark"))
    dark.wait_for_selector("html[data-ready]")
    assert light.evaluate(colour) != dark.evaluate(colour)
    dark.keyboard.press("d")
    assert light.evaluate(colour) == dark.evaluate(colour)


def test_a_narrow_window_shows_the_filters_when_asked(page: Any) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    assert not page.locator("#filters").is_visible()
    everything = int(page.locator("#found").text_content().split()[0])
    page.click("#filters-open")
    page.fill("#search", "nowhere to be found")
    expect_found(page, 0)
    page.keyboard.press("Escape")
    assert not page.locator("#filters").is_visible()
    page.keyboard.press("x")
    page.keyboard.press("f")
    expect_found(page, everything)
    page.click("#views button >> nth=2")
    assert page.locator("#sources").is_visible()
    assert not page.locator("#filters").is_visible()


def test_ten_thousand_conversations_open_fast(
    tmp_path: Path, tokenizer: ChatTokenizer, cfg: SftConfig, open_page: Any
) -> None:
    talks = [
        Talk(
            f"<|im_start|>user\n{row} {n}<|im_end|>\n<|im_start|>assistant\n",
            "many words " * 10 + "<|im_end|>\n",
            row=row,
        )
        for row in range(2500)
        for n in range(4)
    ]
    path = tmp_path / "inspect.html"
    write_inspector(path, inspector_page(cfg, packed_set(tmp_path, talks, tokenizer, []), tokenizer))
    page = open_page(path)
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("performance.now()") < 5000
    assert page.locator("#list .item").count() < 60
    assert page.locator("#found").inner_text() == "10,000 conversations"
