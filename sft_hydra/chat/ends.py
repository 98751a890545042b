"""What ends an assistant's turn at serving: `learn_ends(closings) -> Ends`, and `Ends.missing` for a trained text.

Most templates print an end-of-turn token inside the turn. Some print none: there the opener of the next role is where a
server stops, so it is trained with the turn, and the last turn, which nothing follows, gets it too.
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
    """What a template prints after the last word of a turn that is the last (`alone`), and between that word and the
    next message's content (`followed`). None: the template refuses such a conversation."""

    alone: str | None
    followed: str | None
    own: str | None = None  # of `followed`, what the turn itself prints; None: not known


@dataclass(slots=True)
class End:
    """`tokens`: control texts with one of which a trained text closes (empty: the template has none, any text will do).
    `added`: what a last turn lacks, put behind it."""

    tokens: tuple[str, ...] = ()
    added: str = ""
    replaces: bool = False  # instead of what the template prints after a last turn only

    def closes(self, text: str) -> bool:
        return not self.tokens or text.rstrip().endswith(self.tokens)


@dataclass(slots=True)
class Ends:
    """The ends of answers and of turns with tool calls."""

    answer: End = field(default_factory=End)
    call: End = field(default_factory=End)

    def of(self, calls: bool) -> End:
        return self.call if calls else self.answer

    @property
    def added(self) -> list[str]:
        """The openers that end turns, where the template prints no end."""
        return [token for end in (self.answer, self.call) if end.added for token in control_texts(end.added)]


def learn_ends(answer: Closing, call: Closing, tokens: Iterable[str] = ()) -> Ends:
    """From what stands after an answer and after a call. `tokens`: the tokenizer's control tokens."""
    pattern = _pattern(tokens)
    ends = Ends(_answer_end(answer, pattern))
    ends.call = _call_end(call, ends.answer, pattern)
    return ends


def control_texts(text: str, tokens: Iterable[str] = ()) -> list[str]:
    """Control tokens in a text, in order: `tokens`, and whatever looks like one."""
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
        is_inner = inside[-1].startswith("</") or not answer.tokens or bool(answer.added)
        return opener if is_inner and opener.tokens else End((inside[-1],))
    return _next_opener(closing, pattern)


def _next_opener(closing: Closing, pattern: re.Pattern[str]) -> End:
    """The control token that comes next once something follows; only white space may stand before it."""
    alone, followed = closing.alone or "", closing.followed or ""
    shared = common_prefix([alone, followed])
    if alone.strip() != shared.strip():
        return End()
    found = pattern.search(followed, len(shared))
    if not found or followed[len(shared) : found.start()].strip():
        return End()
    return End((found[0],), followed[len(shared) : found.end()])
