"""Locates assistant turns in rendered text: `TurnSpans.together` (several turns in one text) and `TurnSpans.alone` (one turn after
its serving prompt).

Invariant: a supervised range starts where a generation prompt ends and ends with its turn. If the template does not render such
a text, it is composed of the serving prompt and the turn's text, or RowError is raised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft_hydra.chat.ends import End
from sft_hydra.chat.splice import closes_reasoning, continuation
from sft_hydra.chat.template import ChatTemplate, Scan, Span
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.chat.text import common_prefix, tag_edge
from sft_hydra.errors import RowError
from sft_hydra.records import Message

UNLIKE_PROMPT = "this turn does not start with the template's generation prompt"
MODE = (
    "; if the template has a variable for reasoning (other than enable_thinking), set it in tokenizer.template_kwargs, or leave "
    "reasoning out with data.reasoning=drop"
)


@dataclass(slots=True)
class RenderedSequence:
    """One training sequence as text: consecutive chunks; `trained` says for each whether it is supervised."""

    chunks: list[str]
    trained: list[bool]
    bare_headers: int = 0  # turns that differ from the generation prompt; only their header is masked
    open_ends: int = 0  # turns without an end-of-turn token, because the template prints none
    apart: bool = False  # has one turn, because the template does not render all turns in one text as served
    guarded: bool = False  # control-token text in contents is escaped (data_prep/control_tokens.py)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.chunks)


class TurnNotFoundError(Exception):
    """A turn cannot be located by marks in this text."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Supervised ranges of one turn, message `index`. `bare`: it does not start with the generation prompt."""

    index: int
    spans: list[Span]
    bare: bool


class TurnSpans:
    """Locates turns with a template's marks and traits."""

    def __init__(self, template: ChatTemplate, traits: TemplateTraits) -> None:
        self.template = template
        self.traits = traits
        self.last_served: tuple[Any, str] = (None, "")  # a turn is checked in two ways behind the same prompt
        self.headers = sorted((header for header in traits.headers if header.strip()), key=len, reverse=True)

    def together(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None,
        modes: Sequence[bool],
        turns: list[int],
        last_only: bool = False,
    ) -> tuple[RenderedSequence, list[Turn]]:
        """One text of all messages in which these turns are supervised. `modes[i]`: message i is in thinking mode. `last_only`:
        mark only the last message, which is faster, for texts that are compared with those of `alone`. Raises
        TurnNotFoundError."""
        if not self.traits.marked:
            raise TurnNotFoundError
        scan = self.template.scan(messages, tools, any(modes[turn] for turn in turns), last_only=last_only)
        found = [self._turn(scan, messages, turn, modes[turn]) for turn in turns]
        text = scan.text[: self._stop(scan, messages)]
        if turns[-1] == len(messages) - 1:
            start, stop = found[-1].spans[-1]
            if not self._closes(messages[-1], text[start:stop]):
                own = self._end(messages[-1]).close(text[start:stop], messages[-1].get("content"))
                text = text[:start] + own
                found[-1].spans[-1] = (start, len(text))
        for turn in found:
            start, stop = turn.spans[-1]
            if not self._closes(messages[turn.index], text[start:stop]):
                raise TurnNotFoundError
        spans = [span for turn in found for span in turn.spans]
        bare = sum(turn.bare for turn in found)
        return cut_text(text, spans, bare, self._open_ends(messages, turns)), found

    def alone(self, messages: Sequence[Message], tools: list[Any] | None, thinking: bool) -> RenderedSequence:
        """The last message after its serving prompt. Raises RowError if it cannot be located."""
        if thinking and self.traits.opens_reasoning:
            return self._with_reasoning(messages, tools)
        prefix = self.served(messages[:-1], tools, thinking)
        open_ends = self._open_ends(messages, [len(messages) - 1])
        if not prefix and len(messages) == 1:
            first = self._first(messages, self._last(messages, tools, thinking), open_ends)
            if prefix is None or (first.chunks[0].strip() and not first.trained[0]):
                return first
        prefix = prefix or ""
        if thinking and closes_reasoning(prefix):
            raise RowError("turn_not_located", UNLIKE_PROMPT + MODE)
        if not self.traits.trails and not self._end(messages[-1]).replaces:
            text = self.template.render(messages, tools, thinking)
        else:
            text = self._last(messages, tools, thinking).text
        if text.startswith(prefix) and len(text) > len(prefix):
            rest = text[len(prefix) :]
            header = next((header for header in self.headers if rest.startswith(header)), "")
            if header and prefix == self.template.render(
                messages[:-1], tools, thinking
            ):  # the template has no generation prompt
                start = len(prefix) + len(header)
                return self._closed(messages, [text[:start], text[start:]], 1, open_ends)
            return self._closed(messages, [prefix, rest], 0, open_ends)
        scan = self._last(messages, tools, thinking)
        text = scan.text
        own = text[scan.segments[len(messages) - 1][0][0] :] if len(messages) - 1 in scan.segments else ""
        shown = self.template.render(messages[:-1], tools, thinking)
        if len(messages) == 1:
            return self._first(messages, scan, open_ends)
        prompt = prefix[len(common_prefix([prefix, shown])) :] or self._prompt(thinking, messages[-2]["role"])
        spliced, is_open = continuation(own, prompt, messages[-1], self.traits.headers)
        if spliced is None:
            raise RowError("turn_not_located", UNLIKE_PROMPT + MODE * thinking)
        if is_open:  # the prompt opens reasoning, and this turn has none
            start = len(text) - len(spliced)
            if not prefix.startswith(text[:start]):
                raise RowError("turn_not_located", UNLIKE_PROMPT)
            return self._closed(messages, [text[:start], spliced], 1, open_ends)
        return self._closed(messages, [prefix, spliced], 0, open_ends)

    def served(self, before: Sequence[Message], tools: list[Any] | None, thinking: bool) -> str | None:
        """The serving prompt after these messages; None if there are none and the template raises an error."""
        if before:
            key = (list(before), tools, thinking, self.template.unmarked, self.template.variables)
            if self.last_served[0] != key:
                self.last_served = (key, self.template.render(before, tools, thinking, prompt=True))
            return self.last_served[1]
        try:
            return self.template.render(before, tools, thinking, prompt=True)
        except Exception:  # the assistant opens the conversation; a template may raise whatever its expressions raise
            return None

    def _closed(self, messages: Sequence[Message], chunks: list[str], bare: int, open_ends: int) -> RenderedSequence:
        """A sequence of context and supervised text, with the end-of-turn token that the template omits in a last turn."""
        if not self._closes(messages[-1], chunks[1]):
            chunks[1] = self._end(messages[-1]).close(chunks[1], messages[-1].get("content"))
            if not self._closes(messages[-1], chunks[1]):
                raise RowError("end_of_turn", "the template does not print an end-of-turn token for this turn")
        chunks[1] = self._closed_once(chunks[1], messages[-1])
        if self.ends_early(chunks[1], messages[-1]):
            raise RowError("end_of_turn", "the template prints an end-of-turn token between parts of this turn")
        first = 0 if chunks[0] else 1
        return RenderedSequence(chunks[first:], [False, True][first:], bare, open_ends, apart=True)

    def _closed_once(self, text: str, message: Message) -> str:
        """A turn's text without a second end-of-turn token behind the first, which some templates print after the last turn."""
        for end in self.traits.ends.answer.tokens[-1:]:
            before = text.rstrip().removesuffix(end).rstrip()
            if (
                end
                and before != text.rstrip()
                and before.endswith(end)
                and not str(message.get("content")).rstrip().endswith(end)
            ):
                return before
        return text

    def ends_early(self, text: str, message: Message) -> bool:
        """Whether a turn's text has the end-of-turn token of answers before its end, where a server would stop."""
        for end in self.traits.ends.answer.tokens[-1:]:
            found = text.count(end)
            return found > 1 and found > str(message).count(end) + 1
        return False

    def _closes(self, message: Message, text: str) -> bool:
        """Whether a turn's text ends with an end-of-turn token, or needs none. A content that spells it is not the end."""
        end = self._end(message)
        if not end.closes(text):
            return False
        content = message.get("content")
        if not end.tokens or type(content) is not str or not content.rstrip().endswith(end.tokens):
            return True
        return not text.rstrip().endswith(content.rstrip())

    def _end(self, message: Message) -> End:
        return self.traits.ends.of("tool_calls" in message)

    def _open_ends(self, messages: Sequence[Message], turns: list[int]) -> int:
        return sum(not self._end(messages[turn]).tokens for turn in turns)

    def _with_reasoning(self, messages: Sequence[Message], tools: list[Any] | None) -> RenderedSequence:
        """For templates that open <think> in the prompt but do not print reasoning: prompt, reasoning, the turn's text."""
        prefix = self.served(messages[:-1], tools, True)
        if prefix is None or not prefix.rstrip().endswith("<think>"):
            raise RowError(
                "reasoning", "the template cannot render this turn's reasoning; data.reasoning=drop leaves it out"
            )
        scan = self._last(messages, tools, True)
        turn = self._turn(scan, messages, len(messages) - 1, True)
        close = "\n</think>\n\n" if prefix.endswith("\n") else "</think>"
        answer = scan.text[turn.spans[0][0] :]
        if answer.lstrip().startswith("</think>"):  # the template closes reasoning itself
            close = ""
        chunks = [prefix, messages[-1]["reasoning_content"] + close + answer]
        return self._closed(messages, chunks, 0, self._open_ends(messages, [len(messages) - 1]))

    def _last(self, messages: Sequence[Message], tools: list[Any] | None, thinking: bool) -> Scan:
        if not self.traits.marked:
            text = self.template.render(messages, tools, thinking)
            return Scan(text, {}, len(text))
        scan = self.template.scan(messages, tools, thinking)
        return Scan(scan.text[: self._stop(scan, messages)], scan.segments, scan.tail)

    def _stop(self, scan: Scan, messages: Sequence[Message]) -> int:
        """End of the last turn: the end of the text, unless the text after the last mark does not belong to it."""
        replaced = messages[-1]["role"] == "assistant" and self._end(messages[-1]).replaces
        return scan.tail if self.traits.trails or replaced else len(scan.text)

    def _first(self, messages: Sequence[Message], scan: Scan, open_ends: int) -> RenderedSequence:
        """A turn that opens the conversation, for which a server renders nothing: the text before its content is masked."""
        content = messages[0].get("content")
        start = scan.text.find(content.strip()) if isinstance(content, str) and content.strip() else -1
        if start < 0:
            raise RowError(
                "turn_not_located", "the template does not render an assistant message that opens the conversation"
            )
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
        elif self.traits.call_stop and "tool_calls" in messages[index]:
            a, b = spans[0]
            spans[0] = (a, b + len(self.traits.call_stop) * scan.text.startswith(self.traits.call_stop, b))
        if not is_last:
            spans[-1] = self._to_end(scan.text, spans[-1], messages[index])
        return Turn(index, spans, bare)

    def _to_end(self, text: str, span: Span, message: Message) -> Span:
        """A turn's range, extended by the next role's opener if the template prints no end-of-turn token."""
        start, stop = span
        if self._closes(message, text[start:stop]):
            return span
        space = len(text[stop:]) - len(text[stop:].lstrip())
        token = next((token for token in self._end(message).tokens if text.startswith(token, stop + space)), None)
        if token is None:
            raise TurnNotFoundError
        return start, stop + space + len(token)

    def _header(self, text: str, start: int, stop: int, before: str, thinking: bool) -> tuple[int, bool]:
        """(length of the generation prompt that a turn starts with, False), or (length of its bare header, True)."""
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
        prompts = self.traits.prompts
        return prompts.get((thinking, before), prompts.get((thinking, "user"), ""))


def cut_text(text: str, spans: list[Span], bare: int = 0, open_ends: int = 0) -> RenderedSequence:
    """Split a text at the supervised spans. Raises TurnNotFoundError if they overlap, are empty or out of order."""
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
