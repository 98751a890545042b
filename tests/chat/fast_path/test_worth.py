"""When the cache of renders is used: shapes that are met often enough, lengths at which it serves rows."""

import pytest
from support.chats import assistant, conversation, user

from sft_hydra.chat.fast_path import render_cache
from sft_hydra.chat.fast_path.render_cache import MANY_ROWS, SELDOM, START, TRIED, WORTH
from sft_hydra.chat.render import Renderer
from sft_hydra.records import Conversation, Message

SOURCE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def talk(roles: str) -> Conversation:
    """A conversation of users and assistants: `ua` is a question with its answer."""
    turns: list[Message] = [
        user(f"Question {number}?") if role == "u" else assistant(f"Answer {number}.")
        for number, role in enumerate(roles)
    ]
    return conversation({"messages": turns})


def test_a_long_shape_gets_its_skeleton_after_as_many_rows_as_it_has_messages() -> None:
    renderer = Renderer(SOURCE, {})
    assert renderer.render_cache is not None
    for roles in ("ua", "ua" * 8):
        for row in range(1, max(WORTH, len(roles)) + 1):
            renderer.sequences(talk(roles))
            made = [shape for shape in renderer.render_cache.known if len(shape) == len(roles)]
            assert bool(made) is (row >= max(WORTH, len(roles)))


def test_rows_of_a_length_that_is_never_served_are_seldom_looked_up() -> None:
    renderer = Renderer(SOURCE, {})
    cache = renderer.render_cache
    assert cache is not None
    shapes = [f"u{number:012b}a".replace("0", "u").replace("1", "a") for number in range(TRIED + 10 * SELDOM)]
    for roles in shapes:
        renderer.sequences(talk(roles))
    assert not cache.known
    assert sum(cache.seen.values()) == TRIED + 10
    for _ in range(SELDOM * 30):  # a shape that repeats is found all the same
        renderer.sequences(talk(shapes[0]))
    assert cache.known


def test_few_rows_are_rendered_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_cache, "START", START)
    few, many, more = Renderer(SOURCE, {}), Renderer(SOURCE, {}), Renderer(SOURCE, {})
    few.expect(MANY_ROWS - 1)
    many.expect(MANY_ROWS)
    assert few.render_cache is not None
    assert many.render_cache is not None
    assert more.render_cache is not None
    for _ in range(WORTH):
        assert few.sequences(talk("ua")) == many.sequences(talk("ua"))
    assert not few.render_cache.known
    assert many.render_cache.known
    for _ in range(WORTH + START // 2):  # nobody said how many, and they are many
        more.sequences(talk("ua"))
    assert more.render_cache.known


def test_what_is_served_is_what_the_template_makes() -> None:
    cached, plain = Renderer(SOURCE, {}), Renderer(SOURCE, {})
    plain.render_cache = None
    for _ in range(3 * WORTH):
        for roles in ("ua", "uaua", "uauaua"):
            assert cached.sequences(talk(roles)) == plain.sequences(talk(roles))
    assert cached.render_cache is not None
    assert all(cached.render_cache.known.values())
