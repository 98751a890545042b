"""Rows in contexts that were checked before are rendered as if every row were checked."""

import random
from pathlib import Path
from typing import Any

import pytest
from support.chats import TOOL, assistant, call, conversation, result, system, user

from sft_hydra.chat.checks import LearnedWrongError
from sft_hydra.chat.render import Renderer
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation

TEMPLATES = Path(__file__).parent / "templates"
ROWS = 150
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
TURNS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}{{ '<' ~ m.role ~ '>' }}BODY{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# each prints a turn in a way that depends on messages far from it
FAR = {
    "text beside calls, until an answer follows": TURNS.replace(
        "BODY",
        "{% set ns = namespace(answered=false) %}{% for f in messages[loop.index:] %}"
        "{% if f.role == 'assistant' and not f.tool_calls %}{% set ns.answered = true %}{% endif %}{% endfor %}"
        "{% if not (m.tool_calls and ns.answered) %}{{ m.content }}{% endif %}" + CALLS,
    ),
    "calls of earlier turns without their text": TURNS.replace(
        "BODY",
        "{% set ns = namespace(later=false) %}{% for f in messages[loop.index:] %}"
        "{% if f.role == 'user' %}{% set ns.later = true %}{% endif %}{% endfor %}"
        "{% if not (m.tool_calls and ns.later) %}{{ m.content }}{% endif %}" + CALLS,
    ),
    "a line about tools that were called": TURNS.replace(
        "BODY",
        "{% if loop.index0 == 0 %}{{ messages | selectattr('tool_calls', 'defined') | list | length > 0 }}{% endif %}"
        "{{ m.content }}" + CALLS,
    ),
}


def sources() -> list[Any]:
    files = [pytest.param(path.read_text(encoding="utf-8"), id=path.stem) for path in sorted(TEMPLATES.glob("*.jinja"))]
    return files + [pytest.param(source, id=name) for name, source in FAR.items()]


def words(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return rng.choice(["Yes.", "ok", "No", "weather"])
    end = "\n" if rng.random() < 0.05 else ""
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 12))) + "." + end


def row(rng: random.Random) -> Conversation:
    messages: list[Any] = [system(words(rng))] if rng.random() < 0.5 else []
    tools, number = rng.random() < 0.6, 0
    for _ in range(rng.randint(1, 4)):
        messages.append(user(words(rng)))
        for _ in range(rng.choice([0, 0, 1, 2, 3]) if tools else 0):
            number += 1
            calling = call(id=f"callabc{number:02d}", place=rng.choice(WORDS))
            calling["content"] = words(rng) if rng.random() < 0.4 else ""
            messages += [calling, result(words(rng), f"callabc{number:02d}")]
        messages.append(assistant(words(rng)))
    return conversation({"messages": messages, **({"tools": [TOOL]} if tools else {})})


def outcome(renderer: Renderer, talk: Conversation) -> list[Any] | str:
    try:
        return [(s.chunks, s.trained, s.bare_headers, s.open_ends) for s in renderer.sequences(talk)]
    except RowError as problem:
        return f"{problem.reason}: {problem.detail}"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("source", sources())
def test_rows_of_known_contexts_are_rendered_as_if_each_was_checked(source: str, seed: int) -> None:
    """A difference that is noticed counts as the same: the shard is then prepared again with every row checked. A row may be
    split into more sequences than it must, if these are what a server renders."""
    learned, careful = Renderer(source, {}), Renderer(source, {})
    careful.trust_nothing()
    rng = random.Random(seed)
    for _ in range(ROWS):
        talk = row(rng)
        try:
            found = outcome(learned, talk)
        except LearnedWrongError:
            return
        expected = outcome(careful, talk)
        if isinstance(found, str) or isinstance(expected, str):
            assert found == expected
            continue
        alone = {"".join(sequence.chunks) for sequence in turns_alone(careful, talk)}
        for sequence in found:
            assert sequence in expected or (sum(sequence[1]) == 1 and "".join(sequence[0]) in alone)


def turns_alone(renderer: Renderer, talk: Conversation) -> list[Any]:
    """Every assistant turn after its own serving prompt."""
    assert renderer.locator is not None
    messages = renderer._shape(talk.messages)
    found = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            try:
                found.append(renderer.locator.alone(messages[: index + 1], talk.tools, False))
            except RowError:
                continue
    return found


def test_the_context_of_a_turn_says_what_was_in_its_own_turn_and_in_earlier_ones() -> None:
    """gpt-oss prints the text beside a call until an answer follows: the same kinds of messages, but another prompt."""
    renderer = Renderer(FAR["text beside calls, until an answer follows"], {})
    assert renderer.checks is not None
    silent, explained = call(place="Oslo"), {**call(place="Oslo"), "content": "Let me see."}
    for message in (silent, explained):
        message["tool_calls"][0]["id"] = "callabc00"
    before: list[Any] = [user("a"), explained, result("sun", "callabc00"), assistant("Sun."), user("b"), silent]
    within: list[Any] = [user("a"), assistant("Yes."), user("b"), explained, result("sun", "callabc00"), silent]
    end = [result("rain", "callabc00"), assistant("Rain.")]
    keys = [renderer.checks.contexts.of([*start, *end], [TOOL], [False] * 8)[-1] for start in (before, within)]
    assert keys[0] != keys[1]
