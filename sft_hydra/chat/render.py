"""Renders conversations: `Renderer.sequences` (training sequences as text) and `Renderer.prompt_text` (the text that a server
renders).

Invariant: a supervised chunk starts where the generation prompt ends and ends with the turn's end; the text before it equals,
character by character, what the template renders at inference. Nothing else is supervised.

Owner of: which tokens are supervised.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sft_hydra.chat.checks import Checks, LearnedWrongError
from sft_hydra.chat.fast_path.render_cache import RenderCache
from sft_hydra.chat.message import check_message
from sft_hydra.chat.message_format import format_messages
from sft_hydra.chat.printed_in_order import Made
from sft_hydra.chat.resource_limits import LimitError, limit_resources
from sft_hydra.chat.template import ChatTemplate
from sft_hydra.chat.template_probe import KEEP_REASONING, probe_template, same_turns
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.chat.text import shortest
from sft_hydra.chat.tokenizer import WITH_TOOLS, ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence, TurnNotFoundError, TurnSpans
from sft_hydra.errors import DataError, RowError
from sft_hydra.records import Conversation, Message
from sft_hydra.schema.data import DataConfig, MultiTurn, Reasoning

MOST_WORK = 2_000_000  # messages to render for one conversation, about ten seconds


class Renderer:
    """Renders conversations with one template.

    `template` None concatenates the contents unchanged. `variables` are passed to the template, `now` is its current time, and
    `tokens` are the tokenizer's control tokens. DataError if the template cannot render a question and its answer."""

    def __init__(
        self,
        template: str | None,
        variables: dict[str, Any] | None = None,
        *,
        reasoning: Reasoning = Reasoning.split_turns,
        multi_turn: MultiTurn = MultiTurn.auto,
        now: datetime | None = None,
        tokens: Sequence[str] = (),
    ) -> None:
        self.reasoning = reasoning
        self.multi_turn = multi_turn
        self.traits = TemplateTraits()
        self.template: ChatTemplate | None = None
        self.locator: TurnSpans | None = None
        self.checks: Checks | None = None
        self.render_cache: RenderCache | None = None
        self.with_tools: Renderer | None = None  # renders conversations with tools, if they have a separate template
        if template is None:
            return
        variables = dict(variables or {})
        kwargs = variables.setdefault("chat_template_kwargs", {})
        self.template = ChatTemplate(template, variables, now or datetime.now())
        self.traits = probe_template(self.template, tokens)
        self.locator = TurnSpans(self.template, self.traits)
        self.checks = Checks(self.locator, self.traits, self.template.literals, template)
        self.tested = shortest(text for text in self.template.literals if not re.fullmatch(r"\w+", text))
        if self.traits.marked:
            self.render_cache = RenderCache(self.template, self)
        if reasoning is Reasoning.keep:
            if not self.traits.keeps_reasoning:
                raise DataError(
                    "data.reasoning=keep: this chat template drops the reasoning of earlier turns. "
                    "Use data.reasoning=split_turns (one sequence per user turn) or another tokenizer.chat_template."
                )
            self.template.variables.update(KEEP_REASONING)
            self.template.variables["chat_template_kwargs"] = {**kwargs, **KEEP_REASONING}

    @classmethod
    def of(
        cls,
        tokenizer: ChatTokenizer,
        data: DataConfig | None = None,
        now: datetime | None = None,
        variables: dict[str, Any] | None = None,
    ) -> "Renderer":
        """The renderer of a tokenizer's template, with the policies of `data`. `variables` (default: the tokenizer's special
        tokens and template_kwargs) are passed to the template."""
        data = data or DataConfig(reasoning=Reasoning.split_turns)
        tokens = [token.text for token in tokenizer.added]
        variables = tokenizer.template_variables if variables is None else variables

        def make(template: str | None) -> "Renderer":
            return cls(
                template, variables, reasoning=data.reasoning, multi_turn=data.multi_turn, now=now, tokens=tokens
            )

        renderer = make(tokenizer.template)
        if tokenizer.template is not None and WITH_TOOLS in tokenizer.named:
            renderer.with_tools = make(tokenizer.named[WITH_TOOLS])
        return renderer

    def expect(self, rows: int) -> None:
        """Announce the number of conversations to render, for the render cache."""
        for renderer in (self, self.with_tools):
            if renderer is not None and renderer.render_cache is not None:
                renderer.render_cache.expect(rows)

    def forget(self) -> None:
        """Clear the cached check results, as before the first shard."""
        for renderer in (self, self.with_tools):
            if renderer is not None and renderer.checks is not None:
                renderer.checks.forget()

    def trust_nothing(self) -> None:
        """Render and check every row from now on."""
        for renderer in (self, self.with_tools):
            if renderer is not None and renderer.checks is not None:
                renderer.render_cache = None
                renderer.checks.careful = True

    def prompt_text(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, thinking: bool = False
    ) -> str:
        """The text that a server renders for these messages, with the generation prompt. DataError for invalid messages."""
        try:
            checked = [check_message(message) for message in messages]
        except RowError as problem:
            raise DataError(f"invalid message: {problem.detail}") from None
        if self.template is None:
            return "".join(_content(message) for message in checked)
        if tools and self.with_tools is not None:
            return self.with_tools.prompt_text(messages, tools, thinking)
        return self.template.render(self._shape(checked), tools or None, thinking, prompt=True)

    def chosen(self, conversation: Conversation) -> "Renderer":
        """The renderer of the template that transformers selects: `tool_use` for conversations with tools, if there is one."""
        return self.with_tools if self.with_tools is not None and conversation.tools else self

    def sequences(self, conversation: Conversation) -> list[RenderedSequence]:
        """Training sequences of one conversation, at least one. Raises RowError and LearnedWrongError (see checks.py)."""
        if (chosen := self.chosen(conversation)) is not self:
            return chosen.sequences(conversation)
        if self.render_cache is not None:
            found = self.render_cache.sequences(conversation)
            if found is not None:
                return found
        return self.by_template(conversation)

    def by_template(self, conversation: Conversation, trusted: bool = True) -> list[RenderedSequence]:
        """Training sequences by running the template, without the render cache. `trusted`: use cached check results of rows in
        the same context. Raises RowError and LearnedWrongError."""
        if self.template is None:
            return [_passthrough(conversation)]
        try:
            with limit_resources():
                return self._checked(conversation, trusted)
        except LimitError as problem:
            raise RowError("template_limit", str(problem)) from None
        except (RowError, DataError, LearnedWrongError):
            raise
        except Exception as problem:  # a template may raise whatever its expressions raise
            raise RowError("template", f"{type(problem).__name__}: {problem}") from None

    def unchecked(self, conversation: Conversation) -> list[RenderedSequence]:
        """Training sequences without checks against the server's prompts. Raises RowError and whatever the template raises."""
        return [sequence for sequence, _, _ in self._made(conversation, None)]

    def of_stand_ins(self, conversation: Conversation) -> list[RenderedSequence]:
        """Training sequences whose prompts are checked, but not whether all parts of the row are printed. Raises RowError and
        whatever the template raises."""
        return [sequence for sequence, _, _ in self._made(conversation, False)]

    def _checked(self, conversation: Conversation, trusted: bool) -> list[RenderedSequence]:
        assert self.checks is not None
        trusted = trusted and not self.checks.is_tested(conversation.messages)
        made = self._made(conversation, trusted)
        if not made:
            raise RowError("nothing_to_learn", "the conversation has no supervised assistant turn")
        modes = self._modes(conversation)
        name = self.checks.dropped(conversation, made, modes)
        if name is None:
            name = self.checks.drops_always(conversation, made, lambda other: self._made(other, True), modes)
        if name is not None:
            raise RowError("template_drops", f"the template leaves out the {name}")
        return [sequence for sequence, _, _ in made]

    def _modes(self, conversation: Conversation) -> list[bool]:
        """Whether each message is in thinking mode, i.e. has reasoning that is kept."""
        keep = self.reasoning is not Reasoning.drop
        return [keep and bool(message.get("reasoning_content")) for message in conversation.messages]

    def _made(self, conversation: Conversation, trusted: bool | None) -> list[Made]:
        """Sequences with their supervised turns. `trusted` None: without checks."""
        messages = self._shape(conversation.messages)
        wanted = [_is_supervised(message) for message in conversation.messages]
        modes = self._modes(conversation)
        tools = conversation.tools
        keep = self.reasoning is not Reasoning.drop
        thinking = keep and any("reasoning_content" in message for message in conversation.messages)
        self._check_support(messages)
        if any(modes) and any(
            mode and self.traits.drops_reasoning("tool_calls" in message)
            for mode, message in zip(modes, messages, strict=True)
        ):
            raise RowError("reasoning", "the template does not render reasoning; data.reasoning=drop leaves it out")
        cut = [(len(messages), 0)]
        if thinking and self.reasoning is Reasoning.split_turns:
            cut = user_turns(messages)
        elif not thinking and self._must_split(messages, tools, trusted is True):
            cut = user_turns(messages, greeting=True)
        _check_work(stop for stop, _ in cut)
        out: list[Made] = []
        for stop, first in cut:
            turns = [index for index in range(first, stop) if wanted[index]]
            if turns:
                out += self._one(messages[:stop], tools, modes, turns, trusted)
        return [made for made in out if any(made[0].trained)]

    def _check_support(self, messages: list[Message]) -> None:
        """Raises RowError for messages that the template would silently leave out."""
        if not self.traits.renders_calls and any("tool_calls" in message for message in messages):
            raise RowError("template_tools", "the template does not render tool calls")
        if not self.traits.renders_results and any(message["role"] == "tool" for message in messages):
            raise RowError("template_tools", "the template does not render tool results")

    def _must_split(self, messages: list[Message], tools: list[Any] | None, trusted: bool) -> bool:
        """Whether a later user turn changes how an earlier turn is rendered, so that both do not fit in one text. `trusted`: no
        message contains a text that the template searches for."""
        if self.multi_turn is not MultiTurn.auto:
            return self.multi_turn is MultiTurn.split
        last_user = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=0)
        answers = [message for message in messages[:last_user] if message["role"] == "assistant"]
        if not answers:
            return False
        calls = bool(tools) or any("tool_calls" in message for message in answers)
        if not (self.traits.stable_calls if calls else self.traits.stable):
            return True
        if all(map(self._is_plain, answers)) and (trusted or not any(map(self._is_tested, messages))):
            return False
        assert self.template is not None
        if not self.traits.marked:
            return True
        ends = [stop for stop, _ in user_turns(messages, greeting=True)]
        _check_work(ends)
        return not same_turns(self.template, messages, tools, ends[:-1])

    def _is_plain(self, message: Message) -> bool:
        """Whether the content has no white space at its ends, which templates may trim differently in a last turn."""
        content = message.get("content", "")
        return type(content) is str and not (content[:1].isspace() or content[-1:].isspace())

    def _is_tested(self, message: Message) -> bool:
        """Whether the content contains a text that the template searches for."""
        content = message.get("content")
        return type(content) is str and any(text in content for text in self.tested)

    def _one(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        modes: list[bool],
        turns: list[int],
        trusted: bool | None,
    ) -> list[Made]:
        """Sequences of these turns: one text if all are rendered as served, else one per thinking mode, else one per turn."""
        assert self.locator is not None
        assert self.checks is not None
        thinking = [turn for turn in turns if modes[turn]]
        mixed = 0 < len(thinking) < len(turns)
        policy = self.multi_turn is MultiTurn.one or self.reasoning is Reasoning.keep  # the user wants one text
        tries = not (thinking and self.traits.opens_reasoning) and (policy or self.traits.modes_mix or not mixed)
        calls = not self.traits.stable_steps and any("tool_calls" in messages[turn] for turn in turns)
        if tries and trusted and not policy:
            tries = not self.checks.fails(messages, tools, modes, turns)
        if tries and not (calls and len(turns) > 1):
            try:
                sequence, found = self.locator.together(messages, tools, modes, turns)
            except TurnNotFoundError:
                pass
            else:
                if (
                    policy
                    or trusted is None
                    or self.checks.holds(sequence.text, found, messages, tools, modes, trusted)
                ):
                    return [(sequence, len(messages), turns)]
        if mixed and not calls:
            plain = [turn for turn in turns if not modes[turn]]
            groups = [self._one(messages[: g[-1] + 1], tools, modes, g, trusted) for g in (thinking, plain)]
            return sorted((made for group in groups for made in group), key=lambda made: made[2])
        _check_work(turns)
        return [
            (self._alone(messages[: turn + 1], tools, modes[: turn + 1], trusted), turn + 1, [turn]) for turn in turns
        ]

    def _alone(
        self, messages: list[Message], tools: list[Any] | None, modes: list[bool], trusted: bool | None
    ) -> RenderedSequence:
        """The last turn after its serving prompt. If the template's plain text was equal in this context before, it is rendered
        only once."""
        assert self.locator is not None
        assert self.checks is not None
        locator, turn = self.locator, len(messages) - 1

        def quick() -> RenderedSequence | None:
            try:
                sequence, _ = locator.together(messages, tools, modes, [turn], last_only=True)
            except TurnNotFoundError:
                return None
            sequence.apart = True
            return sequence

        if not trusted or self.checks.careful:
            return locator.alone(messages, tools, modes[turn])
        return self.checks.by_context(
            messages, tools, modes, quick, lambda: locator.alone(messages, tools, modes[turn])
        )

    def _shape(self, messages: Iterable[Message]) -> list[Message]:
        if self.reasoning is Reasoning.drop:
            messages = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]
        return format_messages(list(messages), self.traits)


def user_turns(messages: Sequence[Message], greeting: bool = False) -> list[tuple[int, int]]:
    """(stop, first supervised index) of each user turn that is followed by a message; `messages[:stop]` is its sequence.
    `greeting`: assistant messages before the first user message form a separate turn."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    ends = [*users[1:], len(messages)] if users else []
    turns = [(end, start + 1) for start, end in zip(users, ends, strict=True) if end > start + 1]
    first = users[0] if users else len(messages)
    if (greeting or not users) and any(message["role"] == "assistant" for message in messages[:first]):
        turns.insert(0, (first, 0))
    return turns


def _check_work(ends: Iterable[int]) -> None:
    """Raises RowError if rendering a text up to each of these message indices takes more than MOST_WORK messages."""
    if (work := sum(ends)) > MOST_WORK:
        raise RowError(
            "too_many_turns",
            f"splitting it per turn would render {work:,} messages (limit {MOST_WORK:,})",
        )


def _is_supervised(message: Message) -> bool:
    """Whether a message is an assistant turn with content, reasoning or calls, and its weight is not 0."""
    if message["role"] != "assistant" or message.get("weight", 1) == 0:
        return False
    content = message.get("content", "")
    return bool(content and not content.isspace()) or "tool_calls" in message or bool(message.get("reasoning_content"))


def _content(message: Message) -> str:
    return message.get("content") or ""


def _passthrough(conversation: Conversation) -> RenderedSequence:
    chunks = [_content(message) for message in conversation.messages]
    trained = [_is_supervised(message) for message in conversation.messages]
    if not any(trained):
        raise RowError("nothing_to_learn", "the conversation has no supervised assistant turn")
    return RenderedSequence(chunks, trained)
