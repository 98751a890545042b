"""Skeletons give what the template gives, or leave the row to it."""

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chats import TOOL, assistant, call, conversation, result, system, user

from sft_hydra.chat.fast_path.render_cache import CHECKED, WORTH, NotCachedError
from sft_hydra.chat.render import Renderer
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation

TEMPLATES = Path(__file__).parents[1] / "templates"
TURNS = "{% for m in messages %}{{ '<' ~ m.role ~ '>' }}BODY{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
SERVED = {
    "plain": "{{ m.content }}",
    "trimmed": "{{ m.content | trim }}",
    "split at a tag": "{{ m.content.split('</think>')[-1] }}",
    "tested for a tag": "{% if '<x>' in m.content %}!{% endif %}{{ m.content }}",
    "tested for being there": "{% if m.content | length > 0 %}{{ m.content }}{% endif %}",
}
REFUSED = {
    "a part": "{{ m.content }}{{ m.content[:3] }}",
    "a letter": "{% if m.content[0] == '{' %}!{% endif %}{{ m.content }}",
    "upper case": "{% if m.content | upper == m.content %}!{% endif %}{{ m.content }}",
    "its length": "{% if m.content | length > 100 %}!{% endif %}{{ m.content }}",
    "escaped": "{{ m.content | tojson }}",
    "its lines": "{{ m.content.split('\n') | join(' ') }}",
    "its words": "{{ m.content.split() | join(' ') }}",
    "compared with another": "{% if loop.index0 and m.content == messages[0].content %}!{% endif %}{{ m.content }}",
    "a search by name": "{% set tag = '<x>' %}{% if m.content.startswith(tag) %}!{% endif %}{{ m.content }}",
    "replaced": "{{ m.content | replace('z', 'y') }}",
}
OTHER = {"type": "function", "function": {**TOOL["function"], "name": "other", "strict": True}}  # type: ignore[dict-item]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "</think>",
        "<x>a",
        "a<think>b</think>c",
        " x",
        "x\n",
        "{0}",
        "{",
        "}}",
        "%s",
        "\\n",
        '"',
        "x" * 150,
        "aXa",
        "ab\ncd",
        "Zq0qZ",
    ]
)


TOOLED = (
    "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ (m.content or '') }}CALLS{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALLS = "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
LISTED = "{% if tools %}{% for t in tools %}{{ (t.function | tojson) ~ ';' }}{% endfor %}{% endif %}"
TOOLS_SERVED = {
    "blocks": LISTED + TOOLED.replace("CALLS", "{% if m.tool_calls is defined %}" + CALLS + "{% endif %}"),
    "counted": "{% if tools and tools | length > 0 %}" + LISTED + "{% endif %}" + TOOLED.replace("CALLS", CALLS),
    "by key": LISTED + TOOLED.replace("CALLS", CALLS.replace("m.tool_calls", "m['tool_calls']")),
}
TOOLS_REFUSED = {
    "how many": "{% if tools and tools | length > 1 %}!{% endif %}" + TOOLS_SERVED["blocks"],
    "the first": "{{ tools[0].function.name if tools else '' }}" + TOOLS_SERVED["blocks"],
    "another name": "{% set known = tools %}" + TOOLS_SERVED["blocks"],
    "a name in a loop": "{% set ns = namespace(x='') %}{% for t in tools or [] %}{% if t.function.name == 'other' %}"
    "{% set ns.x = '!' %}{% endif %}{% endfor %}{{ ns.x }}" + TOOLS_SERVED["blocks"],
    "caught": "{% set text %}" + LISTED + "{% endset %}{{ text | trim }}" + TOOLS_SERVED["blocks"],
    "in a macro": "{% macro list(tools) %}"
    + LISTED
    + "{% endmacro %}{{ list(tools) | trim }}"
    + TOOLS_SERVED["blocks"],
    "or others": "{{ (tools or 'none') | length }}" + TOOLS_SERVED["blocks"],
    "printed whole": "{{ tools | tojson }}" + TOOLED.replace("CALLS", CALLS),
    "the call of a result": LISTED
    + TOOLED.replace(
        "CALLS", CALLS + "{% if m.role == 'tool' and m.tool_call_id == messages[1].tool_calls[0].id %}!{% endif %}"
    ),
}


@lru_cache(maxsize=64)
def renderer_of(source: str) -> Renderer:
    return Renderer(source, {"bos_token": "<s>", "eos_token": "</s>"})


def rows(*texts: str, count: int = 1) -> list[object]:
    turns = [assistant(text) if index % 2 else user(text) for index, text in enumerate(texts)]
    return [conversation({"messages": turns}) for _ in range(count)]


def skeleton_of(renderer: Renderer, length: int = 4) -> object:
    """The entry that a plain conversation of so many turns has got."""
    assert renderer.render_cache is not None
    for talk in rows(*(f"text {i}" for i in range(length)), count=WORTH):
        renderer.sequences(talk)  # type: ignore[arg-type]
    (entry,) = renderer.render_cache.known.values()
    return entry


@pytest.mark.parametrize("name", sorted(SERVED))
def test_templates_that_print_contents_have_skeletons(name: str) -> None:
    assert skeleton_of(Renderer(TURNS.replace("BODY", SERVED[name]))) is not None


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_templates_that_look_into_contents_have_none(name: str) -> None:
    assert skeleton_of(Renderer(TURNS.replace("BODY", REFUSED[name]))) is None


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([*SERVED.values(), *REFUSED.values()]).map(lambda body: TURNS.replace("BODY", body))
    | st.sampled_from(sorted(path.read_text() for path in TEMPLATES.glob("*.jinja"))),
    st.lists(TEXT, min_size=2, max_size=6),
)
def test_any_content_is_rendered_as_the_template_does(source: str, texts: list[str]) -> None:
    renderer = renderer_of(source)
    for talk in rows(*(f"text {i}" for i in range(len(texts))), count=WORTH):  # so that this shape has its entry
        renderer.sequences(talk)  # type: ignore[arg-type]
    (talk,) = rows(*texts)
    try:
        expected = renderer.by_template(talk)  # type: ignore[arg-type]
    except RowError as problem:
        with pytest.raises(RowError, match=problem.reason):
            renderer.sequences(talk)  # type: ignore[arg-type]
    else:
        assert renderer.sequences(talk) == expected  # type: ignore[arg-type]


def test_real_rows_are_rendered_as_the_template_does(shared: Path) -> None:
    from sft_hydra.data_prep.conversation import to_conversation
    from sft_hydra.data_prep.sources import Source, files_of, read_rows
    from sft_hydra.schema.data import SourceConfig

    source = (shared / "assets" / "tokenizers" / "nemotron3_nano" / "chat_template.jinja").read_text()
    renderer = Renderer(source)
    assert renderer.render_cache is not None
    served = 0
    for path in sorted((shared / "assets" / "chat").glob("*.jsonl")):
        origin = Source(path.stem, SourceConfig(path=str(path)))
        for number, row in read_rows(files_of(origin)[0], origin, 0, 150):
            talk = to_conversation(row, origin.config, origin.name, f"{path}:{number}")
            quick = renderer.render_cache.sequences(talk)
            if quick is not None:
                served += 1
                assert quick == renderer.by_template(talk)
    assert served > 1000


def test_a_difference_is_noticed() -> None:
    renderer = Renderer(TURNS.replace("BODY", SERVED["plain"]))
    entry = skeleton_of(renderer)
    entry.formats[0][0] += "!"  # type: ignore[attr-defined]
    talks = rows(*(f"text {i}" for i in range(4)), count=CHECKED)
    with pytest.raises(NotCachedError):
        [renderer.sequences(talk) for talk in talks]  # type: ignore[arg-type]


def test_tools_are_rendered_the_same_from_memory(shared: Path) -> None:
    for path in [
        TEMPLATES / "llama3.jinja",
        shared / "assets" / "tokenizers" / "nemotron3_nano" / "chat_template.jinja",
    ]:
        renderer = renderer_of(path.read_text())
        assert renderer.template is not None
        for tools in ([TOOL], [TOOL, OTHER], [OTHER], [TOOL], [TOOL["function"]]):
            messages = [system("s"), user("x"), call(), result("y"), assistant("z")]
            expected = renderer.template.render(messages, tools, False)
            for _ in range(2):
                assert renderer.template.scan(messages, tools, False).text == expected


def tool_talk(tools: list[object], text: str, arguments: dict[str, object], id: str) -> Conversation:
    calling = call(text, id=id, **arguments)  # type: ignore[arg-type]
    return conversation({"messages": [user("x"), calling, result("y", id), assistant("z")], "tools": tools})


def tool_skeleton(renderer: Renderer) -> object:
    assert renderer.render_cache is not None
    for number in range(WORTH):
        renderer.sequences(tool_talk([TOOL], "Let me see.", {"place": f"city {number}"}, "call_1"))
    (entry,) = renderer.render_cache.known.values()
    return entry


@pytest.mark.parametrize("name", sorted(TOOLS_SERVED))
def test_templates_that_print_tools_in_loops_have_skeletons(name: str) -> None:
    assert tool_skeleton(Renderer(TOOLS_SERVED[name])) is not None


@pytest.mark.parametrize("name", sorted(TOOLS_REFUSED))
def test_templates_that_look_into_tools_have_none(name: str) -> None:
    assert tool_skeleton(Renderer(TOOLS_REFUSED[name])) is None


def test_real_tool_chats_have_skeletons(shared: Path) -> None:
    for model in ("nemotron3_nano", "qwen3"):
        template = (shared / "assets" / "tokenizers" / model / "chat_template.jinja").read_text()
        assert (tool_skeleton(Renderer(template)) is not None) == (model == "nemotron3_nano")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*TOOLS_SERVED.values(), *TOOLS_REFUSED.values()])
    | st.sampled_from(sorted(path.read_text() for path in TEMPLATES.glob("*.jinja"))),
    st.lists(
        st.sampled_from([TOOL, OTHER, {"type": "function", "function": {"name": "bare"}}]), min_size=1, max_size=3
    ),
    TEXT,
    st.dictionaries(
        st.text("ab<>&{}", min_size=1, max_size=3), TEXT | st.integers() | st.none() | st.lists(TEXT), max_size=2
    ),
    st.sampled_from(["call_1", "abcdefghi", "x y", "{0}"]),
)
def test_any_tools_and_calls_are_rendered_as_the_template_does(
    source: str, tools: list[object], text: str, arguments: dict[str, object], id: str
) -> None:
    renderer = renderer_of(source)
    talk = tool_talk(tools, text, arguments, id)
    for _ in range(WORTH):  # so that this shape has its entry
        with suppress(RowError):
            renderer.sequences(tool_talk([TOOL], text and "words", {"place": "Oslo"}, "call_1"))
    try:
        expected = renderer.by_template(talk)
    except RowError as problem:
        with pytest.raises(RowError, match=problem.reason):
            renderer.sequences(talk)
    else:
        assert renderer.sequences(talk) == expected
