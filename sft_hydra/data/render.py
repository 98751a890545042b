"""From a Conversation to training sequences as text: `Renderer.sequences`; and to the text a server renders:
`Renderer.prompt_text`.

Invariant: a trained chunk starts where the serving generation prompt ends and closes with the turn's end; what stands
before it is, character for character, what the template renders at inference. Nothing else is trained.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sft_hydra.config.schema_data import DataConfig, MultiTurn, Reasoning
from sft_hydra.data.adapters import RowError
from sft_hydra.data.probe import KEEP_REASONING, Habits, common_prefix, control_texts, learn, tag_edge
from sft_hydra.data.shape import shape_message
from sft_hydra.data.template import ChatTemplate, Span
from sft_hydra.data.tokenizer import ChatTokenizer
from sft_hydra.errors import DataError
from sft_hydra.records import Conversation, Message


@dataclass(slots=True)
class RenderedSequence:
    """One training sequence as text: chunks end to end, each wholly trained or not at all."""

    chunks: list[str]
    trained: list[bool]
    bare_headers: int = 0  # turns that do not start with the serving prompt; only their header is masked
    guarded: bool = False  # control-token text of contents is broken by the guard's word

    @property
    def text(self) -> str:
        return "".join(self.chunks)


class _NotLocatedError(Exception):
    """The marks do not tell where a turn of this row starts."""


class Renderer:
    """Renders conversations with one template. `template` None: contents as they are, one after the other."""

    def __init__(
        self,
        template: str | None,
        variables: dict[str, Any] | None = None,
        *,
        reasoning: Reasoning = Reasoning.split_turns,
        multi_turn: MultiTurn = MultiTurn.auto,
        now: datetime | None = None,
    ) -> None:
        self.reasoning = reasoning
        self.multi_turn = multi_turn
        self.habits = Habits()
        self.template: ChatTemplate | None = None
        if template is None:
            return
        given = dict(variables or {})
        given.setdefault("chat_template_kwargs", {})
        self.template = ChatTemplate(template, given, now or datetime.now())
        self.habits = learn(self.template)
        words = [text for text in self.template.literals() if not re.fullmatch(r"\w+", text)]
        self.tested = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")
        if reasoning is Reasoning.keep:
            if not self.habits.keeps_reasoning:
                raise DataError(
                    "data.reasoning=keep: this chat template drops the reasoning of earlier turns. "
                    "Use data.reasoning=split_turns (one sequence per user turn) or another tokenizer.chat_template."
                )
            self.template.variables.update(KEEP_REASONING)
            self.template.variables["chat_template_kwargs"] = {**given["chat_template_kwargs"], **KEEP_REASONING}

    @classmethod
    def of(cls, tokenizer: ChatTokenizer, data: DataConfig | None = None, now: datetime | None = None) -> "Renderer":
        """The renderer of a tokenizer's template, special tokens and template_kwargs, with the policies of `data`."""
        data = data or DataConfig(reasoning=Reasoning.split_turns)
        kwargs = tokenizer.template_kwargs
        variables = {**tokenizer.special_tokens, **kwargs, "chat_template_kwargs": kwargs}
        return cls(tokenizer.template, variables, reasoning=data.reasoning, multi_turn=data.multi_turn, now=now)

    def prompt_text(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, thinking: bool = False
    ) -> str:
        """What serving renders for these messages, generation prompt included."""
        if self.template is None:
            return "".join(_content(message) for message in messages)
        return self.template.render(self._shape(messages), tools or None, thinking, prompt=True)

    def end_of_turn_texts(self, tokens: list[str]) -> list[str]:
        """Those of `tokens` (control tokens) with which this template closes an assistant turn."""
        found: list[str] = []
        for number, closing in enumerate(self.habits.closings):
            texts = control_texts(closing, tokens)
            found += texts[:1] if number == 0 else texts[-1:]  # a call's text may close inner tags first
        return list(dict.fromkeys(found))

    def sequences(self, conversation: Conversation) -> list[RenderedSequence]:
        """Training sequences of one conversation, at least one. Raises RowError."""
        if self.template is None:
            return [_passthrough(conversation)]
        messages = self._shape(conversation.messages)
        wanted = [_is_learned(message) for message in conversation.messages]
        keep = self.reasoning is not Reasoning.drop
        thoughtful = [keep and bool(message.get("reasoning_content")) for message in conversation.messages]
        thinking = keep and any("reasoning_content" in message for message in conversation.messages)
        try:
            found = self._sequences(messages, conversation.tools, thinking, wanted, thoughtful)
        except (RowError, DataError):
            raise
        except Exception as problem:  # a template may raise whatever its expressions raise
            raise RowError("template", f"{type(problem).__name__}: {problem}") from None
        found = [sequence for sequence in found if any(sequence.trained)]
        if not found:
            raise RowError("nothing_to_learn", "no assistant turn that is trained")
        return found

    def _sequences(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        thinking: bool,
        wanted: list[bool],
        thoughtful: list[bool],
    ) -> list[RenderedSequence]:
        if any(thoughtful) and self.habits.reasoning_field is None:
            raise RowError("reasoning", "the template does not render reasoning; data.reasoning=drop leaves it out")
        cut = [(len(messages), 0)]
        if thinking and self.reasoning is Reasoning.split_turns:
            cut = user_turns(messages)
        elif not thinking and self._must_split(messages, tools):
            cut = user_turns(messages, greeting=True)
        out: list[RenderedSequence] = []
        for stop, first in cut:
            turns = [index for index in range(first, stop) if wanted[index]]
            if turns:
                out += self._one(messages[:stop], tools, thinking, turns, thoughtful)
        return out

    def _must_split(self, messages: list[Message], tools: list[Any] | None) -> bool:
        """True if a later user turn changes how an earlier turn is rendered, so that no single text serves both."""
        if self.multi_turn is not MultiTurn.auto:
            return self.multi_turn is MultiTurn.split
        last_user = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=0)
        answers = [message for message in messages[:last_user] if message["role"] == "assistant"]
        if not answers:
            return False
        calls = any(message.get("tool_calls") for message in answers)
        if not (self.habits.stable_calls if calls else self.habits.stable):
            return True
        if all(self._is_plain(message) for message in messages):
            return False
        assert self.template is not None
        full = self.template.render(messages, tools, False)
        ends = [stop for stop, _ in user_turns(messages, greeting=True)]
        return not all(full.startswith(self.template.render(messages[:stop], tools, False)) for stop in ends)

    def _is_plain(self, message: Message) -> bool:
        content = message.get("content", "")
        return type(content) is str and content == content.strip() and self.tested.search(content) is None

    def _one(
        self, messages: list[Message], tools: list[Any] | None, thinking: bool, turns: list[int], thoughtful: list[bool]
    ) -> list[RenderedSequence]:
        assert self.template is not None
        if self.habits.marked:
            try:
                return [self._by_marks(messages, tools, thinking, turns, thoughtful)]
            except _NotLocatedError:
                pass
        return [self._by_prefix(messages[: turn + 1], tools, thinking, thoughtful[turn]) for turn in turns]

    def _by_marks(
        self, messages: list[Message], tools: list[Any] | None, thinking: bool, turns: list[int], thoughtful: list[bool]
    ) -> RenderedSequence:
        assert self.template is not None
        scan = self.template.scan(messages, tools, thinking)
        spans: list[Span] = []
        bare = 0
        for turn in turns:
            if turn not in scan.segments:
                raise _NotLocatedError
            pieces = scan.segments[turn]
            start, stop = pieces[0][0], pieces[-1][1]
            if turn == len(messages) - 1:
                stop = len(scan.text)
            before = messages[turn - 1]["role"] if turn else "user"
            header, is_served = self._header(scan.text, (start, stop), before, thoughtful[turn])
            bare += not is_served
            cuts = [(max(a, start + header), b) for a, b in pieces if b > start + header]
            if not cuts:
                raise _NotLocatedError
            if turn == len(messages) - 1:
                cuts[-1] = (cuts[-1][0], stop)
            elif self.habits.call_stop and messages[turn].get("tool_calls"):
                a, b = cuts[0]
                cuts[0] = (a, b + len(self.habits.call_stop) * scan.text.startswith(self.habits.call_stop, b))
            spans += cuts
        return _chunks(scan.text, spans, bare)

    def _header(self, text: str, segment: Span, before: str, thoughtful: bool) -> tuple[int, bool]:
        """Length of the generation prompt with which a turn starts, and whether serving renders exactly that."""
        start, stop = segment
        served = [self._prompt(mode, before) for mode in (thoughtful, not thoughtful)]
        for prompt in served:
            if text.startswith(prompt, start) and start + len(prompt) <= stop:
                return len(prompt), True
        for header in sorted(self.habits.headers, key=len, reverse=True):
            if text.startswith(header, start) and start + len(header) <= stop:
                return len(header), False
        common = tag_edge(common_prefix([*served, text[start:stop]]))
        if not common and any(served):
            raise _NotLocatedError
        return len(common), False

    def _prompt(self, thinking: bool, before: str) -> str:
        prompts = self.habits.prompts
        return prompts.get((thinking, before), prompts.get((thinking, "user"), ""))

    def _by_prefix(
        self, messages: list[Message], tools: list[Any] | None, thinking: bool, thoughtful: bool
    ) -> RenderedSequence:
        """One turn, the last one, found by rendering what serving renders before it."""
        assert self.template is not None
        text = self.template.render(messages, tools, thinking)
        for mode in (thoughtful, not thoughtful):
            prefix = self.template.render(messages[:-1], tools, mode, prompt=True) if len(messages) > 1 else ""
            if text.startswith(prefix) and len(text) > len(prefix):
                return _chunks(text, [(len(prefix), len(text))], 0)
        raise RowError("turn_not_located", "the template does not render this turn after its own generation prompt")

    def _shape(self, messages: Iterable[Message]) -> list[Message]:
        habits = self.habits
        if self.reasoning is Reasoning.drop:
            messages = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]
        if habits.reasoning_field == "reasoning_content" and not (habits.content_parts or habits.text_arguments):
            return list(messages)
        return [shape_message(message, habits) for message in messages]


def user_turns(messages: Sequence[Message], greeting: bool = False) -> list[tuple[int, int]]:
    """(stop, first trained index) of each user turn that something follows: `messages[:stop]` is its sequence.
    `greeting`: what an assistant says before the first user is a turn of its own."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    ends = [*users[1:], len(messages)] if users else []
    turns = [(end, start + 1) for start, end in zip(users, ends, strict=True) if end > start + 1]
    first = users[0] if users else len(messages)
    if (greeting or not users) and any(message["role"] == "assistant" for message in messages[:first]):
        turns.insert(0, (first, 0))
    return turns


def _is_learned(message: Message) -> bool:
    """An assistant turn that says something and has no weight of 0."""
    if message["role"] != "assistant" or message.get("weight", 1) == 0:
        return False
    content = message.get("content", "")
    return bool(content and not content.isspace()) or "tool_calls" in message or bool(message.get("reasoning_content"))


def _content(message: Message) -> str:
    return message.get("content") or ""


def _passthrough(conversation: Conversation) -> RenderedSequence:
    chunks = [_content(message) for message in conversation.messages]
    trained = [_is_learned(message) for message in conversation.messages]
    if not any(trained):
        raise RowError("nothing_to_learn", "no assistant turn that is trained")
    return RenderedSequence(chunks, trained)


def _chunks(text: str, spans: list[Span], bare: int) -> RenderedSequence:
    """Cut a text at the trained spans, which must come in order."""
    chunks: list[str] = []
    trained: list[bool] = []
    position = 0
    for start, stop in spans:
        if start < position or stop <= start:
            raise _NotLocatedError
        if start > position:
            chunks.append(text[position:start])
            trained.append(False)
        chunks.append(text[start:stop])
        trained.append(True)
        position = stop
    if position < len(text):
        chunks.append(text[position:])
        trained.append(False)
    return RenderedSequence(chunks, trained, bare)
