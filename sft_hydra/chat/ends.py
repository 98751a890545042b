"""End-of-turn tokens of assistant turns: `learn_ends(answer, call) -> Ends`.

Most templates print an end-of-turn token inside the turn. For those that do not, a server stops at the opener of the next
role; this opener is supervised as part of the turn, and is appended to a last turn. If that is no control token either, the
tokenizer's EOS is appended to every turn, each in a sequence of its own (template_probe.py).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sft_hydra.chat.text import common_prefix

CONTROL = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|<\|[^<>|\s]{1,60}>|<[^<>|\s]{1,60}\|>|<｜[^<>｜\s]{1,60}｜>|</?[A-Za-z_:][\w:.-]{0,40}>"
    r"|\[\|[^|\s]{1,40}\|\]|\[/?[A-Z][A-Z_ ]{2,40}\]|<\[[^<>\[\]\s]{1,40}\]>|\[e~\[|<@?_[a-z_]+>"
)


@dataclass(frozen=True, slots=True)
class Closing:
    """What a template prints after the last word of a turn: `alone` if the turn is the last, `followed` up to the content of
    the next message. None: the template raises an error for such a conversation."""

    alone: str | None
    followed: str | None
    own: str | None = None  # the part of `followed` that the turn itself prints; None: unknown


@dataclass(slots=True)
class End:
    """How supervised text ends. `tokens`: control texts, one of which ends it (empty: the template prints none, any text is
    accepted). `added`: text appended to a last turn."""

    tokens: tuple[str, ...] = ()
    added: str = ""
    replaces: bool = False  # `added` replaces what the template prints only after a last turn
    trims: bool = False  # `added` replaces the white space that the template prints after a turn

    def closes(self, text: str) -> bool:
        """Whether `text` ends with an end-of-turn token, or needs none."""
        return not self.tokens or text.rstrip().endswith(self.tokens)

    def close(self, text: str, content: object) -> str:
        """`text`, a turn with this content, with the end that the template does not print."""
        if not self.trims:
            return text + self.added
        own = content[len(content.rstrip()) :] if isinstance(content, str) else ""
        kept = text.rstrip()
        return (kept + own if text.startswith(own, len(kept)) else kept) + self.added


@dataclass(slots=True)
class Ends:
    """The ends of answers and of turns with tool calls."""

    answer: End = field(default_factory=End)
    call: End = field(default_factory=End)

    def of(self, calls: bool) -> End:
        """The end of a turn with (`calls`) or without tool calls."""
        return self.call if calls else self.answer


def learn_ends(answer: Closing, call: Closing, tokens: Iterable[str] = ()) -> Ends:
    """The ends of turns, from the text after an answer and after a tool call. `tokens`: the tokenizer's control tokens."""
    pattern = _pattern(tokens)
    ends = Ends(_answer_end(answer, pattern))
    ends.call = _call_end(call, ends.answer, pattern)
    return ends


def control_texts(text: str, tokens: Iterable[str] = ()) -> list[str]:
    """Control tokens in a text, in order: those in `tokens`, and texts that match the usual patterns (CONTROL)."""
    return _pattern(tokens).findall(text)


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    known = [re.escape(token) for token in sorted(tokens, key=len, reverse=True) if not token.isspace()]
    return re.compile("|".join([*known, CONTROL.pattern]))


def _answer_end(closing: Closing, pattern: re.Pattern[str]) -> End:
    printed = (closing.alone or "").strip()
    inside = pattern.findall(printed) or ([printed] if printed else [])
    if not inside:
        return _next_opener(closing, pattern)
    if closing.own is not None and not pattern.search(closing.own) and not closing.own.strip():
        opener = _next_opener(Closing(closing.own, closing.followed), pattern)
        if opener.tokens and not set(inside) & set(pattern.findall(closing.followed or "")):
            return End(opener.tokens, opener.added, replaces=True)
    return End(tuple(dict.fromkeys(inside)))


def _call_end(closing: Closing, answer: End, pattern: re.Pattern[str]) -> End:
    if closing.alone is None:
        return End()
    inside = pattern.findall(closing.alone)
    same = [token for token in answer.tokens if token in closing.alone]
    if same:
        return End(tuple(dict.fromkeys([*same, *inside[-1:]])))
    if inside and closing.alone.rstrip().endswith(inside[-1]):
        opener = _next_opener(closing, pattern)
        if not opener.tokens and (found := (closing.followed or "").find(inside[-1])) >= 0:
            opener = _next_opener(Closing(inside[-1], (closing.followed or "")[found:]), pattern)  # ids of calls differ
        is_inner = inside[-1].startswith("</") or not answer.tokens or bool(answer.added)
        return opener if is_inner and opener.tokens else End((inside[-1],))
    return _next_opener(closing, pattern)


def _next_opener(closing: Closing, pattern: re.Pattern[str]) -> End:
    """The control token printed next when a message follows; only white space may precede it."""
    alone, followed = closing.alone or "", closing.followed or ""
    shared = common_prefix([alone, followed])
    if alone.strip() != shared.strip():
        return End()
    found = pattern.search(followed, len(shared))
    if not found or followed[len(shared) : found.start()].strip():
        return End()
    return End((found[0],), followed[len(shared) : found.end()])
