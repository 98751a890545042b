"""Where assistant turns stand in a rendered text: `TurnSpans.together` (several turns of one text) and `TurnSpans.alone` (one
turn after what serving renders before it).

Invariant: a trained range starts where a generation prompt ends and closes with its turn. Where the template gives no
such text in one piece, it is put together from the serving prompt and the turn's own text, or the turn is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft_hydra.chat.ends import End
from sft_hydra.chat.splice import continuation
from sft_hydra.chat.template import ChatTemplate, Scan, Span
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.chat.text import common_prefix, tag_edge
from sft_hydra.errors import RowError
from sft_hydra.records import Message


@dataclass(slots=True)
class RenderedSequence:
    """One training sequence as text: chunks end to end, each wholly trained or not at all."""

    chunks: list[str]
    trained: list[bool]
    bare_headers: int = 0  # turns that do not start with the serving prompt; only their header is masked
    open_ends: int = 0  # turns of a template that prints nothing that ends a turn
    apart: bool = False  # of one turn, because the template shows its turns in no one text as they were served
    guarded: bool = False  # control-token text of contents is broken by the guard's word

    @property
    def text(self) -> str:
        return "".join(self.chunks)


class TurnNotFoundError(Exception):
    """The marks do not tell where a turn of this text stands."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Trained ranges of one turn, the `index`-th message. `bare`: it does not start with a serving prompt."""

    index: int
    spans: list[Span]
    bare: bool


class TurnSpans:
    """Finds turns with a template's marks and habits."""

    def __init__(self, template: ChatTemplate, habits: TemplateTraits) -> None:
        self.template = template
        self.habits = habits
        self.headers = sorted((header for header in habits.headers if header.strip()), key=len, reverse=True)

    def together(
        self, messages: Sequence[Message], tools: list[Any] | None, modes: Sequence[bool], turns: list[int]
    ) -> tuple[RenderedSequence, list[Turn]]:
        """One text of all messages with these turns trained. `modes[i]`: message i is in thinking mode. Raises
        NotLocatedError."""
        if not self.habits.marked:
            raise TurnNotFoundError
        scan = self.template.scan(messages, tools, any(modes[turn] for turn in turns))
        found = [self._turn(scan, messages, turn, modes[turn]) for turn in turns]
        text = scan.text[: self._stop(scan, messages)]
        if turns[-1] == len(messages) - 1:
            end = self._end(messages[-1])
            start, stop = found[-1].spans[-1]
            if not end.closes(text[start:stop]):
                text = text[:stop] + end.added
                found[-1].spans[-1] = (start, len(text))
        for turn in found:
            start, stop = turn.spans[-1]
            if not self._end(messages[turn.index]).closes(text[start:stop]):
                raise TurnNotFoundError
        spans = [span for turn in found for span in turn.spans]
        bare = sum(turn.bare for turn in found)
        return cut_text(text, spans, bare, self._open_ends(messages, turns)), found

    def alone(self, messages: Sequence[Message], tools: list[Any] | None, thinking: bool) -> RenderedSequence:
        """The last message after what serving renders before it. Raises RowError if it cannot be told."""
        if thinking and self.habits.opens_reasoning:
            return self._with_reasoning(messages, tools)
        prefix = self.served(messages[:-1], tools, thinking)
        open_ends = self._open_ends(messages, [len(messages) - 1])
        if prefix is not None and not self.habits.trails and not self._end(messages[-1]).replaces:
            text = self.template.render(messages, tools, thinking)
        else:
            text = self._last(messages, tools, thinking).text
        if prefix is not None and text.startswith(prefix) and len(text) > len(prefix):
            rest = text[len(prefix) :]
            header = next((header for header in self.headers if rest.startswith(header)), "")
            if header and prefix == self.template.render(
                messages[:-1], tools, thinking
            ):  # there is no generation prompt
                start = len(prefix) + len(header)
                return self._closed(messages, [text[:start], text[start:]], 1, open_ends)
            return self._closed(messages, [prefix, rest], 0, open_ends)
        scan = self._last(messages, tools, thinking)
        text = scan.text
        if prefix is None:
            return self._first(messages, scan, open_ends)
        own = text[scan.segments[len(messages) - 1][0][0] :] if len(messages) - 1 in scan.segments else ""
        shown = self.template.render(messages[:-1], tools, thinking)
        if len(messages) == 1:
            return self._first(messages, scan, open_ends)
        prompt = prefix[len(common_prefix([prefix, shown])) :] or self._prompt(thinking, messages[-2]["role"])
        spliced, is_open = continuation(own, prompt, messages[-1])
        if spliced is None:
            raise RowError("turn_not_located", "the template does not render this turn after its own prompt")
        if is_open:  # the prompt opens reasoning, and this turn has none
            start = len(text) - len(spliced)
            if not prefix.startswith(text[:start]):
                raise RowError("turn_not_located", "the template does not render this turn after its own prompt")
            return self._closed(messages, [text[:start], spliced], 1, open_ends)
        return self._closed(messages, [prefix, spliced], 0, open_ends)

    def served(self, before: Sequence[Message], tools: list[Any] | None, thinking: bool) -> str | None:
        """What serving renders after these messages; None where nobody can ask (the template refuses it)."""
        if before:
            return self.template.render(before, tools, thinking, prompt=True)
        try:
            return self.template.render(before, tools, thinking, prompt=True)
        except (
            Exception
        ):  # a conversation that the assistant opens; a template may raise whatever its expressions raise
            return None

    def _closed(self, messages: Sequence[Message], chunks: list[str], bare: int, open_ends: int) -> RenderedSequence:
        """Context and trained text, which gets the end that a last turn of this template lacks."""
        end = self._end(messages[-1])
        if not end.closes(chunks[1]):
            chunks[1] += end.added
            if not end.closes(chunks[1]):
                raise RowError("end_of_turn", "the template does not print the end of this turn")
        first = 0 if chunks[0] else 1
        return RenderedSequence(chunks[first:], [False, True][first:], bare, open_ends, apart=True)

    def _end(self, message: Message) -> End:
        return self.habits.ends.of("tool_calls" in message)

    def _open_ends(self, messages: Sequence[Message], turns: list[int]) -> int:
        return sum(not self._end(messages[turn]).tokens for turn in turns)

    def _with_reasoning(self, messages: Sequence[Message], tools: list[Any] | None) -> RenderedSequence:
        """For templates whose prompt opens <think> but which print no reasoning: prompt, reasoning, the turn's text."""
        prefix = self.served(messages[:-1], tools, True)
        if prefix is None or not prefix.rstrip().endswith("<think>"):
            raise RowError("reasoning", "the template has no place for the reasoning of this turn")
        scan = self._last(messages, tools, True)
        turn = self._turn(scan, messages, len(messages) - 1, True)
        close = "\n</think>\n\n" if prefix.endswith("\n") else "</think>"
        answer = scan.text[turn.spans[0][0] :]
        chunks = [prefix, messages[-1]["reasoning_content"] + close + answer]
        return self._closed(messages, chunks, 0, self._open_ends(messages, [len(messages) - 1]))

    def _last(self, messages: Sequence[Message], tools: list[Any] | None, thinking: bool) -> Scan:
        if not self.habits.marked:
            text = self.template.render(messages, tools, thinking)
            return Scan(text, {}, len(text))
        scan = self.template.scan(messages, tools, thinking)
        return Scan(scan.text[: self._stop(scan, messages)], scan.segments, scan.tail)

    def _stop(self, scan: Scan, messages: Sequence[Message]) -> int:
        """Where the last turn ends: with the text, unless what follows the last mark is not part of it."""
        replaced = messages[-1]["role"] == "assistant" and self._end(messages[-1]).replaces
        return scan.tail if self.habits.trails or replaced else len(scan.text)

    def _first(self, messages: Sequence[Message], scan: Scan, open_ends: int) -> RenderedSequence:
        """A turn that opens the conversation where serving cannot ask for one: what stands before its words is masked."""
        content = messages[0].get("content")
        start = scan.text.find(content.strip()) if isinstance(content, str) and content.strip() else -1
        if start < 0:
            raise RowError("turn_not_located", "the template does not render an assistant that speaks first")
        return self._closed(messages, [scan.text[:start], scan.text[start:]], 1, open_ends)

    def _turn(self, scan: Scan, messages: Sequence[Message], index: int, thinking: bool) -> Turn:
        if index not in scan.segments:
            raise TurnNotFoundError
        pieces = scan.segments[index]
        is_last = index == len(messages) - 1
        last = self._stop(scan, messages)
        start, stop = pieces[0][0], last if is_last else pieces[-1][1]
        before = messages[index - 1]["role"] if index else "user"
        header, bare = self._header(scan.text, start, stop, before, thinking)
        spans = [(max(a, start + header), b) for a, b in pieces if b > start + header]
        if not spans:
            raise TurnNotFoundError
        if is_last:  # what follows the last message belongs to it
            spans[-1] = (spans[-1][0], stop)
        elif self.habits.call_stop and "tool_calls" in messages[index]:
            a, b = spans[0]
            spans[0] = (a, b + len(self.habits.call_stop) * scan.text.startswith(self.habits.call_stop, b))
        if not is_last:
            spans[-1] = self._to_end(scan.text, spans[-1], self._end(messages[index]))
        return Turn(index, spans, bare)

    def _to_end(self, text: str, span: Span, end: End) -> Span:
        """A turn's range with the opener behind it that ends it, where the template prints no end."""
        start, stop = span
        if end.closes(text[start:stop]):
            return span
        space = len(text[stop:]) - len(text[stop:].lstrip())
        token = next((token for token in end.tokens if text.startswith(token, stop + space)), None)
        if token is None:
            raise TurnNotFoundError
        return start, stop + space + len(token)

    def _header(self, text: str, start: int, stop: int, before: str, thinking: bool) -> tuple[int, bool]:
        """Length of the generation prompt with which a turn starts; of the bare header, and True, if there is none."""
        prompt = self._prompt(thinking, before)
        if prompt and text.startswith(prompt, start) and start + len(prompt) <= stop:
            return len(prompt), False
        for header in self.headers:
            if text.startswith(header, start) and start + len(header) <= stop:
                return len(header), True
        if not prompt:
            return 0, False
        common = tag_edge(common_prefix([prompt, self._prompt(not thinking, before), text[start:stop]]))
        if not common:
            raise TurnNotFoundError
        return len(common), True

    def _prompt(self, thinking: bool, before: str) -> str:
        prompts = self.habits.prompts
        return prompts.get((thinking, before), prompts.get((thinking, "user"), ""))


def cut_text(text: str, spans: list[Span], bare: int = 0, open_ends: int = 0) -> RenderedSequence:
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
    return RenderedSequence(chunks, trained, bare, open_ends)
