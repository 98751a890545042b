"""Determines a chat template's traits by rendering small conversations: `probe_template(template) -> TemplateTraits`.

It also chooses the marks (template.py): the first marking for which every probe's marked text equals its plain text and each
assistant's words are inside its marks only. Without such a marking, turns are located by rendering prefixes (`marked` False).
A template that cannot render a question and an answer is an error here, so that it does not reject every row later.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from sft_hydra.chat.ends import Closing, End, control_texts, learn_ends
from sft_hydra.chat.message_format import format_messages
from sft_hydra.chat.probe_messages import RESULT, SYSTEM, TOOLS, assistant, caller, user
from sft_hydra.chat.resource_limits import LimitError, limit_resources
from sft_hydra.chat.template import ChatTemplate, Scan
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.errors import DataError
from sft_hydra.records import Message

REASONING = ("reasoning_content", "thinking", "reasoning", "")  # keys of reasoning; "" inside the content
CLOSING = re.compile(r"</[^<>]*think[^<>]*>")
KEEP_REASONING = {"truncate_history_thinking": False, "clear_thinking": False, "preserve_thinking": True}


def probe_template(template: ChatTemplate, tokens: Sequence[str] = ()) -> TemplateTraits:
    """Probe a template. `tokens`: the tokenizer's control tokens. Raises DataError if it cannot render a question with its
    answer, LimitError if it takes too long."""
    with limit_resources():
        return _probe(template, tokens)


def _probe(template: ChatTemplate, tokens: Sequence[str]) -> TemplateTraits:
    traits = TemplateTraits()
    _learn_contents(template, traits)
    _learn_developer(template, traits)
    _learn_arguments(template, traits)
    _learn_reasoning(template, traits)
    if traits.renders_calls:
        _learn_call_reasoning(template, traits)
    for marking in template.markings():
        template.mark(marking)
        traits.prompts, traits.headers, traits.call_stop = {}, set(), ""
        if _marks_fit(template, traits):
            traits.marked = True
            break
    else:
        template.mark(None)
    _learn_trails(template, traits)
    _learn_history(template, traits)
    _probe_closings(template, traits, tokens)
    template.use_blocks()
    return traits


def probe_closings(template: ChatTemplate, tokens: Sequence[str]) -> TemplateTraits:
    """Traits of a template with only the ends of turns filled in, if that suffices; faster than `probe_template`."""
    traits = TemplateTraits()
    with limit_resources():
        _learn_contents(template, traits)
        _learn_arguments(template, traits)
        _probe_closings(template, traits, tokens)
        if _ends_differ(template, traits):
            return _probe(template, tokens)
    return traits


def _ends_differ(template: ChatTemplate, traits: TemplateTraits) -> bool:
    """Whether an answer's end depends on whether it is the last turn, so that marks are needed to find it."""
    answer = _closing(template, traits, [user(1), assistant(1)], "Qasst1", user(2))
    ends, between = control_texts(answer.alone or ""), control_texts(answer.followed or "")
    return bool(ends and between) and between[0] not in ends


def _render(
    template: ChatTemplate,
    traits: TemplateTraits,
    messages: list[Message],
    thinking: bool = False,
    prompt: bool = False,
) -> str | None:
    """The text; None if the template raises an error for such a conversation."""
    shaped = format_messages(messages, traits)
    try:
        return template.render(shaped, _tools(messages, traits), thinking, prompt)
    except LimitError:
        raise
    except Exception:  # a template may raise whatever its expressions raise
        return None


def _tools(messages: list[Message], traits: TemplateTraits) -> list[Any] | None:
    return TOOLS if traits.needs_tools or any("tool_calls" in message for message in messages) else None


def _learn_contents(template: ChatTemplate, traits: TemplateTraits) -> None:
    problem: object = None
    choices = product((False, True), (False, True), (False, True))
    for template.always_thinks, traits.needs_tools, traits.content_parts in choices:
        messages = [user(1), assistant(1)]
        shaped = format_messages(messages, traits)
        try:
            text = template.render(shaped, _tools(messages, traits), False)
        except LimitError:
            raise
        except Exception as raised:  # a template may raise whatever its expressions raise
            problem = problem or raised
            continue
        if "Quser1" in text and "Qasst1" in text and "'type'" not in text:
            return
    why = problem or "the answer is not in its output"
    raise DataError(f"tokenizer.chat_template: cannot render a question and its answer ({why})")


def _learn_arguments(template: ChatTemplate, traits: TemplateTraits) -> None:
    for traits.text_arguments in (False, True):
        text = _render(template, traits, [user(1), caller("")])
        if text is not None and "vq7" in text and "'kq': 'vq7'" not in text:
            traits.renders_calls = True
            _learn_null(template, traits, len(text))
            _learn_ids(template, traits)
            break
    else:
        traits.text_arguments = False
    text = _render(template, traits, [user(1), caller(""), RESULT]) or _render(template, traits, [user(1), RESULT])
    traits.renders_results = "Qtool1" in (text or "")


def _learn_null(template: ChatTemplate, traits: TemplateTraits, length: int) -> None:
    """Some templates print an empty text beside a call as a separate answer; these get null instead."""
    traits.empty_as_null = True
    text = _render(template, traits, [user(1), caller("")])
    traits.empty_as_null = text is not None and "vq7" in text and "None" not in text and len(text) < length


def _learn_call_reasoning(template: ChatTemplate, traits: TemplateTraits) -> None:
    fields = [traits.reasoning_field, *(name for name in REASONING if name != traits.reasoning_field)]
    if traits.opens_reasoning:
        return
    for name in fields if traits.reasoning_field is not None else REASONING[:-1]:
        traits.call_reasoning_field = name
        text = _render(template, traits, [user(1), {**caller(""), "reasoning_content": "Qreas1"}], thinking=True)
        if text is None or "Qreas1" not in text or "vq7" not in text:
            continue
        if name or not CLOSING.search(text.partition("Quser1")[2].partition("Qreas1")[0]):
            return
    traits.call_reasoning_field = traits.reasoning_field


def _learn_ids(template: ChatTemplate, traits: TemplateTraits) -> None:
    nameless, named = caller(""), caller("")
    nameless["tool_calls"][0].pop("id")
    named["tool_calls"][0]["id"] = "call_of_q1"
    result = {"role": "tool", "content": "Qtool1"}
    traits.long_ids = _render(template, traits, [user(1), named, {**result, "tool_call_id": "call_of_q1"}]) is None
    traits.needs_ids = traits.long_ids or _render(template, traits, [user(1), nameless, result]) is None


def _learn_reasoning(template: ChatTemplate, traits: TemplateTraits) -> None:
    for name in REASONING:
        traits.reasoning_field = traits.call_reasoning_field = name
        text = _render(template, traits, [user(1), assistant(1, reasoning_content="Qreas1")], thinking=True)
        if text is not None and "Qreas1" in text and "Qasst1" in text:
            between = text.partition("Quser1")[2].partition("Qreas1")[0]
            if not name and CLOSING.search(between):  # it prints an empty block before every content
                continue
            traits.opens_inline = not name and between.count("<think>") > 1
            return
    traits.reasoning_field = traits.call_reasoning_field = None
    prompt = _render(template, traits, [user(1)], thinking=True, prompt=True)
    traits.opens_reasoning = (prompt or "").rstrip().endswith("<think>")


def _probes() -> Iterator[list[Message]]:
    yield [user(1), assistant(1), user(2), assistant(2)]
    yield [SYSTEM, user(1), assistant(1)]
    yield [SYSTEM, user(1), assistant(1), user(2)]
    yield [user(1)]
    yield [user(1), assistant(1)]
    yield [user(1), caller("")]
    yield [user(1), caller(""), RESULT]
    yield [user(1), caller("Qasst1"), RESULT]
    yield [user(1), caller("Qasst1"), RESULT, assistant(2)]
    yield [user(1), caller("Qasst1"), RESULT, assistant(2), user(2), assistant(3)]
    yield [user(1), assistant(1, reasoning_content="Qreas1")]


def _marks_fit(template: ChatTemplate, traits: TemplateTraits) -> bool:
    """Whether every probe is rendered as without marks, with all turns found; also records headers and prompts."""
    located = 0
    last_call = ""
    for messages in _probes():
        shaped = format_messages(messages, traits)
        for thinking in (False, True):
            plain = _render(template, traits, messages, thinking)
            if plain is None:
                continue
            scan = template.scan(shaped, _tools(messages, traits), thinking)
            if scan.text != plain or not _turns_fit(scan, messages, traits):
                return False
            if not _learn_prompt(template, traits, messages, thinking):
                return False
            located += sum(message["role"] == "assistant" for message in messages)
            last_call = _learn_call_stop(scan, messages, traits, last_call)
    return located > 0


def _turns_fit(scan: Scan, messages: list[Message], traits: TemplateTraits) -> bool:
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        inside = scan.segment_text(index)
        if not _is_own(message, inside, messages, scan.text):
            return False
        header, word, _ = inside.partition(message["content"] or "\0")
        if word and "reasoning_content" not in message:
            traits.headers.add(header)
    return True


def _learn_call_stop(scan: Scan, messages: list[Message], traits: TemplateTraits, last_call: str) -> str:
    """Record what a tool-call turn prints only when it is the last one. Returns its text as the last turn."""
    call = next((index for index, message in enumerate(messages) if "tool_calls" in message), None)
    if call is None or call not in scan.segments:
        return last_call
    text = scan.text[slice(*scan.segments[call][0])]
    if call == len(messages) - 1:
        return text
    if last_call.startswith(text):
        traits.call_stop = last_call[len(text) :]
    return last_call


def _is_own(message: Message, inside: str, messages: list[Message], text: str) -> bool:
    """Whether a message's content is inside its marks, and no other message's content is."""
    content = message["content"]
    if (content in text and content not in inside) or (content not in text and "tool_calls" not in message):
        return False
    return not any(other["content"] and other["content"] in inside for other in messages if other is not message)


def _learn_prompt(template: ChatTemplate, traits: TemplateTraits, messages: list[Message], thinking: bool) -> bool:
    plain = _render(template, traits, messages, thinking, prompt=True)
    if plain is None:
        return True
    shaped = format_messages(messages, traits)
    scan = template.scan(shaped, _tools(messages, traits), thinking, prompt=True)
    if messages[-1]["role"] != "assistant":
        without = _render(template, traits, messages, thinking)
        added = (
            plain[len(without) :] if without and plain.startswith(without) else ""
        )  # some templates print it inside the loop
        traits.prompts.setdefault((thinking, messages[-1]["role"]), added or scan.text[scan.tail :])
    return scan.text == plain


def _learn_history(template: ChatTemplate, traits: TemplateTraits) -> None:
    """Whether turns are rendered the same as last turn and as history, and whether earlier reasoning can be kept."""
    later = [user(2), assistant(3)]
    answers = [[user(1), assistant(1)], [SYSTEM, user(1), assistant(1)]]
    calls = [[user(1), caller(content), RESULT, assistant(2)] for content in ("", "Qasst1")]
    traits.stable = all(_reads_same(template, traits, first, later) for first in answers)
    traits.stable_calls = all(_reads_same(template, traits, first, later) for first in calls)
    prompts = [_render(template, traits, [user(1)], thinking) for thinking in (False, True)]
    traits.mode_free = prompts[0] == prompts[1]
    plain, thoughtful = (traits.prompts.get((thinking, "user"), "") for thinking in (False, True))
    traits.modes_mix = traits.mode_free and not plain.startswith(thoughtful) and not thoughtful.startswith(plain)
    thinkers = [{}, {"reasoning_content": "Qreas1"}] if traits.reasoning_field else [{}]
    traits.stable_steps = all(_steps_fit(template, traits, {**caller(""), **more}) for more in thinkers)
    thought = [user(1), assistant(1, reasoning_content="Qreas1"), user(2), assistant(2, reasoning_content="Qreas2")]
    before = dict(template.variables)
    template.variables.update(KEEP_REASONING, chat_template_kwargs=KEEP_REASONING)
    text = _render(template, traits, thought, thinking=True) or ""
    template.variables.clear()
    template.variables.update(before)
    traits.keeps_reasoning = "Qreas1" in text and "Qreas2" in text


def _reads_same(template: ChatTemplate, traits: TemplateTraits, first: list[Message], later: list[Message]) -> bool:
    """Whether the turns of `first`, and the text before them, are rendered the same with `later` after them."""
    everything = [*first, *later]
    early, late = (_render(template, traits, messages) for messages in (first, everything))
    if early is None or late is None or not traits.marked:
        return early is None or late is None or late.startswith(early)
    tools = _tools(first, traits)
    for index, message in enumerate(first):
        before = format_messages(first[:index], traits)
        if message["role"] == "assistant" and not any(
            late.startswith(template.render(before, tools, *mode))
            for mode in ((False, False), (False, True), (True, True))
        ):
            return False
    return same_turns(template, format_messages(everything, traits), tools, [len(first)])


def same_turns(template: ChatTemplate, messages: list[Message], tools: list[Any] | None, stops: list[int]) -> bool:
    """Whether, for each stop, the assistant turns of `messages[:stop]` are rendered the same with and without later messages."""
    late = template.scan(messages, tools, False)
    for stop in stops:
        early = template.scan(messages[:stop], tools, False)
        for index, message in enumerate(messages[:stop]):
            if message["role"] == "assistant" and early.segment_text(index) != late.segment_text(index):
                return False
    return True


def _steps_fit(template: ChatTemplate, traits: TemplateTraits, call: Message) -> bool:
    thinking = "reasoning_content" in call
    whole = _render(template, traits, [user(1), call, RESULT, assistant(2)], thinking)
    served = [_render(template, traits, [user(1), call, RESULT], mode, prompt=True) for mode in (True, False)]
    return whole is None or any(prompt is not None and whole.startswith(prompt) for prompt in served)


def _probe_closings(template: ChatTemplate, traits: TemplateTraits, tokens: Sequence[str]) -> None:
    answer = _closing(template, traits, [user(1), assistant(1)], "Qasst1", user(2))
    call = Closing(None, None)
    if traits.renders_calls:
        call = _closing(template, traits, [user(1), caller("")], "vq7", RESULT)
    traits.ends = learn_ends(answer, call, tokens)
    eos = template.variables.get("eos_token")
    if isinstance(eos, str) and eos.strip():
        _end_with_eos(traits, eos)


def _end_with_eos(traits: TemplateTraits, eos: str) -> None:
    """Where the template prints nothing that ends a turn, the model's own end is trained; servers stop there by default."""
    if not traits.ends.answer.tokens:
        traits.ends.answer = End((eos,), eos, trims=True)
    if traits.renders_calls and not traits.ends.call.tokens:
        traits.ends.call = End((eos,), eos, trims=True)


def _closing(
    template: ChatTemplate, traits: TemplateTraits, messages: list[Message], word: str, then: Message
) -> Closing:
    """The text after the last word of `messages`, as the last turn and with the message `then` after it."""
    alone = _render(template, traits, messages)
    followed = _render(template, traits, [*messages, then])
    own = None if followed is None else _own_closing(template, traits, [*messages, then], len(messages) - 1, word)
    if alone is not None:
        alone = _without_prompt(template, traits, messages, alone.rpartition(word)[2])
    if followed is not None:
        between, found, _ = followed.rpartition(word)[2].partition(then["content"])
        followed = between if found else None
    return Closing(alone, followed, own)


def _own_closing(
    template: ChatTemplate, traits: TemplateTraits, messages: list[Message], index: int, word: str
) -> str | None:
    """What a turn prints after its last word when another message follows; None if unknown."""
    if not traits.marked:
        return None
    scan = template.scan(format_messages(messages, traits), _tools(messages, traits), False)
    _, found, own = scan.segment_text(index).rpartition(word)
    return own if found else None


def _without_prompt(template: ChatTemplate, traits: TemplateTraits, messages: list[Message], closing: str) -> str:
    """A closing without the text that follows every last turn."""
    if not traits.trails:
        return closing
    scan = template.scan(format_messages(messages, traits), _tools(messages, traits), False)
    return closing.removesuffix(scan.text[scan.tail :])


def _learn_trails(template: ChatTemplate, traits: TemplateTraits) -> None:
    """Whether text follows the last turn of any role, such as an unrequested generation prompt or instructions; a single
    end-of-text token does not count."""
    if not traits.marked:
        return
    tools = TOOLS if traits.renders_calls or traits.needs_tools else None
    tails = []
    for messages in ([user(1)], [user(1), assistant(1)]):
        try:
            scan = template.scan(format_messages(messages, traits), tools, False)
        except LimitError:
            raise
        except Exception:  # a template may raise whatever its expressions raise
            return
        tails.append(scan.text[scan.tail :])
    rest = tails[0].strip()
    traits.trails = tails[0] == tails[1] and bool(rest) and control_texts(rest)[:1] != [rest]


def _learn_developer(template: ChatTemplate, traits: TemplateTraits) -> None:
    asked = [{"role": "developer", "content": "Qdev1"}, user(1)]
    for traits.developer_as_system in (False, True):
        texts = (_render(template, traits, [*asked, assistant(1)]), _render(template, traits, asked, prompt=True))
        if any(text is not None and "Qdev1" in text for text in texts):
            return
    traits.developer_as_system = False
