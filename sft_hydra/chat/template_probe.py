"""What a chat template does, learned once by rendering small conversations: `probe_template(template) -> Habits`.

Owns the choice of marks: the first marking under which every probe's marked text is its plain text, and each assistant's
words lie in its own marks and in nobody else's. A template for which none is found is rendered by prefixes (`marked`
is False), and one that cannot even render a question and an answer is an error here, not a dropped row later.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from sft_hydra.chat.ends import Closing, control_texts, learn_ends
from sft_hydra.chat.message_format import format_messages
from sft_hydra.chat.probe_messages import RESULT, SYSTEM, TOOLS, assistant, caller, user
from sft_hydra.chat.resource_limits import LimitError, limit_resources
from sft_hydra.chat.template import ChatTemplate, Scan
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.errors import DataError
from sft_hydra.records import Message

KEEP_REASONING = {"truncate_history_thinking": False, "clear_thinking": False, "preserve_thinking": True}


def probe_template(template: ChatTemplate, tokens: Sequence[str] = ()) -> TemplateTraits:
    """Probe a template. `tokens`: the tokenizer's control tokens. Raises DataError when it cannot render a question with
    its answer."""
    with limit_resources():
        return _probe(template, tokens)


def _probe(template: ChatTemplate, tokens: Sequence[str]) -> TemplateTraits:
    habits = TemplateTraits()
    _learn_contents(template, habits)
    _learn_developer(template, habits)
    _learn_arguments(template, habits)
    _learn_reasoning(template, habits)
    if habits.renders_calls:
        _learn_call_companions(template, habits)
    for marking in template.markings():
        template.mark(marking)
        habits.prompts, habits.headers, habits.call_stop = {}, set(), ""
        if _marks_fit(template, habits):
            habits.marked = True
            break
    else:
        template.mark(None)
    _learn_trails(template, habits)
    _learn_history(template, habits)
    _probe_closings(template, habits, tokens)
    template.use_blocks()
    return habits


def probe_closings(template: ChatTemplate, tokens: Sequence[str]) -> TemplateTraits:
    """What `learn` finds out about the ends of turns; no more, where that is enough."""
    habits = TemplateTraits()
    with limit_resources():
        _learn_contents(template, habits)
        _learn_arguments(template, habits)
        _probe_closings(template, habits, tokens)
        if _ends_differ(template, habits):
            return _probe(template, tokens)
    return habits


def _ends_differ(template: ChatTemplate, habits: TemplateTraits) -> bool:
    """Whether an answer ends otherwise as the last turn than before another, so that marks must tell what it ends with."""
    answer = _closing(template, habits, [user(1), assistant(1)], "Qasst1", user(2))
    ends, between = control_texts(answer.alone or ""), control_texts(answer.followed or "")
    return bool(ends and between) and between[0] not in ends


def _render(
    template: ChatTemplate,
    habits: TemplateTraits,
    messages: list[Message],
    thinking: bool = False,
    prompt: bool = False,
) -> str | None:
    """The text, or None where the template refuses such a conversation."""
    shaped = format_messages(messages, habits)
    try:
        return template.render(shaped, _tools(messages, habits), thinking, prompt)
    except LimitError:
        raise
    except Exception:  # a template may raise whatever its expressions raise
        return None


def _tools(messages: list[Message], habits: TemplateTraits) -> list[Any] | None:
    return TOOLS if habits.needs_tools or any("tool_calls" in message for message in messages) else None


def _learn_contents(template: ChatTemplate, habits: TemplateTraits) -> None:
    problem: object = "the answer is not in its output"
    for habits.needs_tools, habits.content_parts in product((False, True), (False, True)):
        messages = [user(1), assistant(1)]
        shaped = format_messages(messages, habits)
        try:
            text = template.render(shaped, _tools(messages, habits), False)
        except LimitError:
            raise
        except Exception as raised:  # a template may raise whatever its expressions raise
            problem = raised
            continue
        if "Quser1" in text and "Qasst1" in text and "'type'" not in text:
            return
    raise DataError(f"tokenizer.chat_template: cannot render a question and its answer ({problem})")


def _learn_arguments(template: ChatTemplate, habits: TemplateTraits) -> None:
    for habits.text_arguments in (False, True):
        text = _render(template, habits, [user(1), caller("")])
        if text is not None and "vq7" in text and "{'kq'" not in text:
            habits.renders_calls = True
            _learn_null(template, habits, len(text))
            _learn_ids(template, habits)
            break
    else:
        habits.text_arguments = False
    text = _render(template, habits, [user(1), caller(""), RESULT]) or _render(template, habits, [user(1), RESULT])
    habits.renders_results = "Qtool1" in (text or "")


def _learn_null(template: ChatTemplate, habits: TemplateTraits, length: int) -> None:
    """Some templates print an answer of its own for an empty text beside a call."""
    habits.empty_as_null = True
    text = _render(template, habits, [user(1), caller("")])
    habits.empty_as_null = text is not None and "vq7" in text and "None" not in text and len(text) < length


def _learn_call_companions(template: ChatTemplate, habits: TemplateTraits) -> None:
    text = _render(template, habits, [user(1), caller("Qasst1")])
    habits.renders_call_text = text is None or "Qasst1" in text
    thought = _render(template, habits, [user(1), {**caller(""), "reasoning_content": "Qreas1"}], thinking=True)
    habits.renders_call_reasoning = thought is None or "Qreas1" in thought or habits.opens_reasoning


def _learn_ids(template: ChatTemplate, habits: TemplateTraits) -> None:
    call = caller("")
    call["tool_calls"][0].pop("id")
    result = {"role": "tool", "content": "Qtool1"}
    habits.long_ids = _render(template, habits, [user(1), call, result]) is None


def _learn_reasoning(template: ChatTemplate, habits: TemplateTraits) -> None:
    for name in ("reasoning_content", "thinking", "reasoning", ""):
        habits.reasoning_field = name
        text = _render(template, habits, [user(1), assistant(1, reasoning_content="Qreas1")], thinking=True)
        if text is not None and "Qreas1" in text and "Qasst1" in text:
            return
    habits.reasoning_field = None
    prompt = _render(template, habits, [user(1)], thinking=True, prompt=True)
    habits.opens_reasoning = (prompt or "").rstrip().endswith("<think>")


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


def _marks_fit(template: ChatTemplate, habits: TemplateTraits) -> bool:
    """True if every probe is rendered as without marks and each turn found; learns what stands around turns."""
    located = 0
    last_call = ""
    for messages in _probes():
        shaped = format_messages(messages, habits)
        for thinking in (False, True):
            plain = _render(template, habits, messages, thinking)
            if plain is None:
                continue
            scan = template.scan(shaped, _tools(messages, habits), thinking)
            if scan.text != plain or not _turns_fit(scan, messages, habits):
                return False
            if not _learn_prompt(template, habits, messages, thinking):
                return False
            located += sum(message["role"] == "assistant" for message in messages)
            last_call = _learn_call_stop(scan, messages, habits, last_call)
    return located > 0


def _turns_fit(scan: Scan, messages: list[Message], habits: TemplateTraits) -> bool:
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        inside = scan.segment_text(index)
        if not _is_own(message, inside, messages, scan.text):
            return False
        header, word, _ = inside.partition(message["content"] or "\0")
        if word and "reasoning_content" not in message:
            habits.headers.add(header)
    return True


def _learn_call_stop(scan: Scan, messages: list[Message], habits: TemplateTraits, last_call: str) -> str:
    """Compare how a call's turn ends as the last one and with a result after it. Returns the text of the last one."""
    call = next((index for index, message in enumerate(messages) if "tool_calls" in message), None)
    if call is None or call not in scan.segments:
        return last_call
    text = scan.text[slice(*scan.segments[call][0])]
    if call == len(messages) - 1:
        return text
    if last_call.startswith(text):
        habits.call_stop = last_call[len(text) :]
    return last_call


def _is_own(message: Message, inside: str, messages: list[Message], text: str) -> bool:
    """The assistant's words are in its own marks, and no other message's are."""
    content = message["content"]
    if (content in text and content not in inside) or (content not in text and "tool_calls" not in message):
        return False
    return not any(other["content"] and other["content"] in inside for other in messages if other is not message)


def _learn_prompt(template: ChatTemplate, habits: TemplateTraits, messages: list[Message], thinking: bool) -> bool:
    plain = _render(template, habits, messages, thinking, prompt=True)
    if plain is None:
        return True
    shaped = format_messages(messages, habits)
    scan = template.scan(shaped, _tools(messages, habits), thinking, prompt=True)
    if messages[-1]["role"] != "assistant":
        without = _render(template, habits, messages, thinking)
        added = plain[len(without) :] if without and plain.startswith(without) else ""  # some print it inside the loop
        habits.prompts.setdefault((thinking, messages[-1]["role"]), added or scan.text[scan.tail :])
    return scan.text == plain


def _learn_history(template: ChatTemplate, habits: TemplateTraits) -> None:
    """Does a turn read the same as the last one and as history? And is earlier reasoning kept when asked to be?"""
    later = [user(2), assistant(3)]
    answers = [[user(1), assistant(1)], [SYSTEM, user(1), assistant(1)]]
    calls = [[user(1), caller(content), RESULT, assistant(2)] for content in ("", "Qasst1")]
    habits.stable = all(_reads_same(template, habits, first, later) for first in answers)
    habits.stable_calls = all(_reads_same(template, habits, first, later) for first in calls)
    asked = [_render(template, habits, [user(1)], thinking) for thinking in (False, True)]
    habits.mode_free = asked[0] == asked[1]
    plain, thoughtful = (habits.prompts.get((thinking, "user"), "") for thinking in (False, True))
    habits.modes_mix = habits.mode_free and not plain.startswith(thoughtful) and not thoughtful.startswith(plain)
    thinkers = [{}, {"reasoning_content": "Qreas1"}] if habits.reasoning_field else [{}]
    habits.stable_steps = all(_steps_fit(template, habits, {**caller(""), **more}) for more in thinkers)
    thought = [user(1), assistant(1, reasoning_content="Qreas1"), user(2), assistant(2, reasoning_content="Qreas2")]
    before = dict(template.variables)
    template.variables.update(KEEP_REASONING, chat_template_kwargs=KEEP_REASONING)
    text = _render(template, habits, thought, thinking=True) or ""
    template.variables.clear()
    template.variables.update(before)
    habits.keeps_reasoning = "Qreas1" in text and "Qreas2" in text


def _reads_same(template: ChatTemplate, habits: TemplateTraits, first: list[Message], later: list[Message]) -> bool:
    """Whether the turns of `first`, and what stands before them, read the same with `later` after them."""
    everything = [*first, *later]
    early, late = (_render(template, habits, messages) for messages in (first, everything))
    if early is None or late is None or not habits.marked:
        return early is None or late is None or late.startswith(early)
    tools = _tools(first, habits)
    for index, message in enumerate(first):
        before = format_messages(first[:index], habits)
        if message["role"] == "assistant" and not any(
            late.startswith(template.render(before, tools, *mode))
            for mode in ((False, False), (False, True), (True, True))
        ):
            return False
    return same_turns(template, format_messages(everything, habits), tools, [len(first)])


def same_turns(template: ChatTemplate, messages: list[Message], tools: list[Any] | None, stops: list[int]) -> bool:
    """True if for each stop the assistant turns of `messages[:stop]` read the same with and without what comes after."""
    late = template.scan(messages, tools, False)
    for stop in stops:
        early = template.scan(messages[:stop], tools, False)
        for index, message in enumerate(messages[:stop]):
            if message["role"] == "assistant" and early.segment_text(index) != late.segment_text(index):
                return False
    return True


def _steps_fit(template: ChatTemplate, habits: TemplateTraits, call: Message) -> bool:
    thinking = "reasoning_content" in call
    whole = _render(template, habits, [user(1), call, RESULT, assistant(2)], thinking)
    served = [_render(template, habits, [user(1), call, RESULT], mode, prompt=True) for mode in (True, False)]
    return whole is None or any(prompt is not None and whole.startswith(prompt) for prompt in served)


def _probe_closings(template: ChatTemplate, habits: TemplateTraits, tokens: Sequence[str]) -> None:
    answer = _closing(template, habits, [user(1), assistant(1)], "Qasst1", user(2))
    call = Closing(None, None)
    if habits.renders_calls:
        call = _closing(template, habits, [user(1), caller("")], "vq7", RESULT)
    habits.closings = [closing.alone for closing in (answer, call) if closing.alone]
    habits.ends = learn_ends(answer, call, tokens)


def _closing(
    template: ChatTemplate, habits: TemplateTraits, messages: list[Message], word: str, then: Message
) -> Closing:
    """What is printed after the last word of the last of `messages`, alone and with another message behind it."""
    alone = _render(template, habits, messages)
    followed = _render(template, habits, [*messages, then])
    own = None if followed is None else _own_closing(template, habits, [*messages, then], len(messages) - 1, word)
    if alone is not None:
        alone = _without_prompt(template, habits, messages, alone.rpartition(word)[2])
    if followed is not None:
        between, found, _ = followed.rpartition(word)[2].partition(then["content"])
        followed = between if found else None
    return Closing(alone, followed, own)


def _own_closing(
    template: ChatTemplate, habits: TemplateTraits, messages: list[Message], index: int, word: str
) -> str | None:
    """What a turn prints after its last word when another message follows; None where that cannot be told."""
    if not habits.marked:
        return None
    scan = template.scan(format_messages(messages, habits), _tools(messages, habits), False)
    _, found, own = scan.segment_text(index).rpartition(word)
    return own if found else None


def _without_prompt(template: ChatTemplate, habits: TemplateTraits, messages: list[Message], closing: str) -> str:
    """A closing without what follows the last turn, whoever speaks in it."""
    if not habits.trails:
        return closing
    scan = template.scan(format_messages(messages, habits), _tools(messages, habits), False)
    return closing.removesuffix(scan.text[scan.tail :])


def _learn_trails(template: ChatTemplate, habits: TemplateTraits) -> None:
    """Whether text follows the last turn, whoever speaks in it: a generation prompt that was not asked for, or instructions;
    not a single token that ends the text."""
    if not habits.marked:
        return
    tools = TOOLS if habits.renders_calls or habits.needs_tools else None
    tails = []
    for messages in ([user(1)], [user(1), assistant(1)]):
        try:
            scan = template.scan(format_messages(messages, habits), tools, False)
        except LimitError:
            raise
        except Exception:  # a template may raise whatever its expressions raise
            return
        tails.append(scan.text[scan.tail :])
    rest = tails[0].strip()
    habits.trails = tails[0] == tails[1] and bool(rest) and control_texts(rest)[:1] != [rest]


def _learn_developer(template: ChatTemplate, habits: TemplateTraits) -> None:
    for habits.developer_as_system in (False, True):
        text = _render(template, habits, [{"role": "developer", "content": "Qdev1"}, user(1), assistant(1)])
        if text is not None and "Qdev1" in text:
            return
    habits.developer_as_system = False


def end_of_turn_texts(habits: TemplateTraits, tokens: list[str]) -> list[str]:
    """Those of `tokens` (control tokens) with which a template of these habits closes an assistant turn."""
    found: list[str] = []
    for number, closing in enumerate(habits.closings):
        texts = [text for text in control_texts(closing, tokens) if text in tokens]
        found += texts[:1] if number == 0 else texts[-1:]  # a call's text may close inner tags first
    found += [text for text in habits.ends.added if text in tokens]
    return list(dict.fromkeys(found))
