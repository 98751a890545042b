"""Where assistant turns stand in a rendered text: `TurnSpans.together` (several turns of one text) and `TurnSpans.alone` (one
turn after what serving renders before it).

Invariant: a trained range starts where a generation prompt ends and closes with its turn. Where the template gives no
such text in one piece, it is put together from the serving prompt and the turn's own text, or the turn is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft_hydra.chat.template import ChatTemplate, Scan, Span
from sft_hydra.chat.template_probe import common_prefix, tag_edge
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.errors import RowError
from sft_hydra.records import Message


@dataclass(slots=True)
class RenderedSequence:
    """One training sequence as text: chunks end to end, each wholly trained or not at all."""

    chunks: list[str]
    trained: list[bool]
    bare_headers: int = 0  # turns that do not start with the serving prompt; only their header is masked
    left_out: int = 0  # turns of which the template prints the tool call but not the text or reasoning beside it
    guarded: bool = False  # control-token text of contents is broken by the guard's word

    @property
    def text(self) -> str:
        return "".join(self.chunks)


class TurnNotFoundError(Exception):
    """The marks do not tell where a turn of this text stands."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """Trained ranges of one turn. `mode`: the thinking mode whose prompt it starts with; None: with its header only."""

    spans: list[Span]
    mode: bool | None


class TurnSpans:
    """Finds turns with a template's marks and habits."""

    def __init__(self, template: ChatTemplate, habits: TemplateTraits) -> None:
        self.template = template
        self.habits = habits
        self.headers = sorted(habits.headers, key=len, reverse=True)

    def together(
        self, messages: Sequence[Message], tools: list[Any] | None, thinking: bool, turns: list[int], modes: list[bool]
    ) -> RenderedSequence:
        """One text of all messages with these turns trained. `modes[i]`: message i has reasoning. Raises NotLocatedError."""
        if not self.habits.marked:
            raise TurnNotFoundError
        scan = self.template.scan(messages, tools, thinking)
        own = modes if self.habits.mode_free else [thinking] * len(messages)
        found = [self._turn(scan, messages, turn, own[turn]) for turn in turns]
        spans = [span for turn in found for span in turn.spans]
        return cut_text(scan.text, spans, sum(turn.mode is None for turn in found))

    def alone(
        self, messages: Sequence[Message], tools: list[Any] | None, thinking: bool, thoughtful: bool
    ) -> RenderedSequence:
        """The last message after what serving renders before it. Raises RowError if it cannot be told."""
        if thoughtful and self.habits.opens_reasoning:
            return self._with_reasoning(messages, tools)
        text = self.template.render(messages, tools, thinking)
        served = {mode: self._served(messages, tools, mode) for mode in (thoughtful, not thoughtful)}
        for prefix in served.values():
            if text.startswith(prefix) and len(text) > len(prefix):
                return cut_text(text, [(len(prefix), len(text))])
        scan, turn = self._last(messages, tools, thinking, thoughtful)
        if turn.mode is None:
            return cut_text(scan.text, turn.spans, 1)
        return RenderedSequence([served[turn.mode], scan.text[turn.spans[0][0] :]], [False, True])

    def _with_reasoning(self, messages: Sequence[Message], tools: list[Any] | None) -> RenderedSequence:
        """For templates whose prompt opens <think> but which print no reasoning: prompt, reasoning, the turn's text."""
        prefix = self._served(messages, tools, True)
        if not prefix.rstrip().endswith("<think>"):
            raise RowError("reasoning", "the template has no place for the reasoning of this turn")
        scan, turn = self._last(messages, tools, True, True)
        close = "\n</think>\n\n" if prefix.endswith("\n") else "</think>"
        answer = scan.text[turn.spans[0][0] :]
        return RenderedSequence([prefix, messages[-1]["reasoning_content"] + close + answer], [False, True])

    def _served(self, messages: Sequence[Message], tools: list[Any] | None, mode: bool) -> str:
        return self.template.render(messages[:-1], tools, mode, prompt=True) if len(messages) > 1 else ""

    def _last(
        self, messages: Sequence[Message], tools: list[Any] | None, thinking: bool, thoughtful: bool
    ) -> tuple[Scan, _Turn]:
        try:
            if not self.habits.marked:
                raise TurnNotFoundError
            scan = self.template.scan(messages, tools, thinking)
            return scan, self._turn(scan, messages, len(messages) - 1, thoughtful)
        except TurnNotFoundError:
            raise RowError("turn_not_located", "the template does not render this turn after its own prompt") from None

    def _turn(self, scan: Scan, messages: Sequence[Message], index: int, thoughtful: bool) -> _Turn:
        if index not in scan.segments:
            raise TurnNotFoundError
        pieces = scan.segments[index]
        is_last = index == len(messages) - 1
        start, stop = pieces[0][0], len(scan.text) if is_last else pieces[-1][1]
        before = messages[index - 1]["role"] if index else "user"
        header, mode = self._header(scan.text, start, stop, before, thoughtful)
        spans = [(max(a, start + header), b) for a, b in pieces if b > start + header]
        if not spans:
            raise TurnNotFoundError
        if is_last:  # what follows the last message belongs to it
            spans[-1] = (spans[-1][0], stop)
        elif self.habits.call_stop and "tool_calls" in messages[index]:
            a, b = spans[0]
            spans[0] = (a, b + len(self.habits.call_stop) * scan.text.startswith(self.habits.call_stop, b))
        return _Turn(spans, mode)

    def _header(self, text: str, start: int, stop: int, before: str, thoughtful: bool) -> tuple[int, bool | None]:
        """Length of the generation prompt with which a turn starts, and its mode; of the bare header if there is none."""
        prompts = {mode: self._prompt(mode, before) for mode in (thoughtful, not thoughtful)}
        for mode, prompt in prompts.items():
            if text.startswith(prompt, start) and start + len(prompt) <= stop:
                return len(prompt), mode
        for header in self.headers:
            if text.startswith(header, start) and start + len(header) <= stop:
                return len(header), None
        common = tag_edge(common_prefix([*prompts.values(), text[start:stop]]))
        if not common:
            raise TurnNotFoundError
        return len(common), None

    def _prompt(self, thinking: bool, before: str) -> str:
        prompts = self.habits.prompts
        return prompts.get((thinking, before), prompts.get((thinking, "user"), ""))


def cut_text(text: str, spans: list[Span], bare: int = 0) -> RenderedSequence:
    """Cut a text at the trained spans, which must come in order. Raises NotLocatedError if they do not."""
    chunks: list[str] = []
    trained: list[bool] = []
    position = 0
    for start, stop in spans:
        if start < position or stop <= start:
            raise TurnNotFoundError
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
