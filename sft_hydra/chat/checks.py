"""Holds rendered sequences to what a server renders: `Checks.holds` (the text before every trained turn is the prompt that
the template renders for the messages before it) and `Checks.dropped` (what of a row does not stand in its text).

Both are learned: a turn in surroundings that were checked before (roles and kinds of fields beside it, and which there are
before and after it) is trusted, unless a content of its row holds a text that the template looks for. One row in EVERY
is checked all the same; a difference raises LearnedWrongError, and the shard is done again with every turn checked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from sft_hydra.chat.resource_limits import LimitError
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.chat.text import shortest
from sft_hydra.chat.turn_spans import RenderedSequence, Turn, TurnSpans
from sft_hydra.chat.whole import LONG, are_unique, lost, lost_of_messages, message_texts, tool_texts
from sft_hydra.records import Conversation, Message

EVERY = 61  # rows; odd, so that rows that alternate are met in turn
FINE = 5  # bits
MOST_REGIONS = 10_000
Key = tuple[Any, ...]
Region = tuple[str, int]
Made = tuple[RenderedSequence, int, list[int]]  # a sequence, of how many of the row's messages, the turns trained in it


class LearnedWrongError(Exception):
    """A turn is not rendered as others in the same surroundings are."""


class Checks:
    """Checks of one template. `careful`: nothing is trusted."""

    def __init__(self, locator: TurnSpans, habits: TemplateTraits, literals: set[str], source: str) -> None:
        self.locator = locator
        self.habits = habits
        self.literals = shortest(text for text in literals if not text.isalnum())
        self.source = source
        self.careful = False
        self.codes: dict[Key, int] = {}
        self.forget()

    def forget(self) -> None:
        """Learn again, so that what a shard becomes does not depend on the shards before it."""
        self.good: dict[Key, bool] = {}
        self.whole: dict[Key, str | None] = {}
        self.regions: dict[bytes, Region] = {}  # of tools: the part of a text that prints them, and where it stood
        self.rows = 0

    def holds(
        self,
        text: str,
        found: list[Turn],
        messages: Sequence[Message],
        tools: list[Any] | None,
        modes: Sequence[bool],
        trusted: bool,
    ) -> bool:
        """True if each turn stands behind its serving prompt, or as near as this template allows. `trusted`: what was
        learned counts."""
        keys = self.surroundings(messages, tools, modes)
        spot = -1
        if trusted:
            self.rows += 1
            if self.rows % EVERY == 0:
                spot = found[(self.rows // EVERY) % len(found)].index
        for turn in found:
            key = keys[turn.index]
            known = self.good.get(key) if trusted and not self.careful else None
            if known is False:
                return False
            if known and turn.index != spot:
                continue
            holds = self._stands(text, turn, messages, tools, modes[turn.index])
            if known and not holds:
                raise LearnedWrongError
            if trusted:
                self.good[key] = holds
            if not holds:
                return False
        return True

    def by_habit(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None,
        modes: Sequence[bool],
        quick: Callable[[], RenderedSequence | None],
        sure: Callable[[], RenderedSequence],
    ) -> RenderedSequence:
        """A sequence of the last turn: `quick` where it was as `sure` in such surroundings before, else `sure`."""
        key = ("alone", self.surroundings(messages, tools, modes)[-1])
        self.rows += 1
        if self.good.get(key) and self.rows % EVERY and (found := quick()) is not None:
            return found
        sequence = sure()
        same = quick() == sequence
        if self.good.get(key) and not same:
            raise LearnedWrongError
        self.good[key] = same
        return sequence

    def is_tested(self, messages: Sequence[Message]) -> bool:
        """True if a text of a message holds one that the template looks for."""
        for message in messages:
            for name in ("content", "reasoning_content"):
                text = message.get(name)
                if type(text) is str and any(literal in text for literal in self.literals):
                    return True
        return False

    def dropped(self, conversation: Conversation, made: list[Made], modes: list[bool]) -> str | None:
        """What of a row does not stand in the sequences made of it; None if all does."""
        region = self._region(conversation.tools)
        for sequence, stop, turns in made:
            text = sequence.text
            missing = None if _holds_region(text, region) else lost(tool_texts(conversation.tools), text)
            if missing is not None:
                return missing
            if (name := lost_of_messages(conversation.messages[:stop], turns, modes, text)) is not None:
                return name
        return None

    def drops_always(
        self,
        conversation: Conversation,
        made: list[Made],
        remake: Callable[[Conversation], list[Made]],
        modes: list[bool],
    ) -> str | None:
        """What the template leaves out of rows like this one, learned with words that stand nowhere else. What stands nowhere
        else in the row itself, and was found in its texts (`dropped`), need not be learned."""
        keys: list[Key] = [*self.surroundings(conversation.messages, conversation.tools, modes)]
        keys.append(("tools", frozenset(keys)) if conversation.tools else ())
        if self.careful or self._is_open(conversation, keys, made):
            self._learn_whole(conversation, keys, remake, modes)
        return next((name for key in keys if (name := self.whole.get(key)) is not None), None)

    def _is_open(self, conversation: Conversation, keys: list[Key], made: list[Made]) -> bool:
        """Whether something of a row might be left out and only seem to stand there, because the same words stand elsewhere."""
        if conversation.tools and keys[-1] not in self.whole:
            region = self._region(conversation.tools)
            if not all(_holds_region(sequence.text, region) for sequence, _, _ in made):
                return True
        new = [index for index, key in enumerate(keys[:-1]) if key not in self.whole]
        return bool(new) and not are_unique([conversation.messages[i] for i in new], conversation, self.source)

    def _region(self, tools: list[Any] | None) -> Region | None:
        return self.regions.get(_key_of(tools)) if tools else None

    def _learn_whole(
        self,
        conversation: Conversation,
        keys: list[Key],
        remake: Callable[[Conversation], list[Made]],
        modes: list[bool],
    ) -> None:
        found: list[list[str | None]] = []
        for letters in ("Kw", "mb"):  # a template may replace a letter, but hardly all of them
            stand_in = Conversation(_with_stand_ins(conversation.messages, letters), conversation.tools, "", "")
            try:
                made = remake(stand_in)
            except LimitError:
                raise
            except Exception:  # the template does not take such words: the row itself is looked at
                made = []
            found.append(_what_is_lost(stand_in, made, modes))
            if not any(found[-1]):
                break
        if conversation.tools and made:
            self._learn_region(conversation.tools, made[0][0].text)
        for number, key in enumerate(keys):
            name = found[-1][number] if all(names[number] for names in found) else None
            self.whole[key] = self.whole.get(key) or name

    def _learn_region(self, tools: list[Any], text: str) -> None:
        """Remember how tools are printed in a text whose messages hold none of their words."""
        places = [(text.find(wanted), len(wanted)) for _, wanted in tool_texts(tools)]
        if not places or min(places)[0] < 0:
            return
        start = min(places)[0]
        region = text[start : max(place + length for place, length in places)]
        if len(self.regions) >= MOST_REGIONS:
            self.regions.clear()
        if len(region) >= LONG and lost(tool_texts(tools), region) is None:
            self.regions[_key_of(tools)] = region, start

    def _stands(
        self, text: str, turn: Turn, messages: Sequence[Message], tools: list[Any] | None, thinking: bool
    ) -> bool:
        prefix = text[: turn.spans[0][0]]
        prompt = self.locator.served(messages[: turn.index], tools, thinking)
        if not turn.bare:
            return prompt == prefix
        if prompt is None:  # nobody can ask for what an assistant says first
            return True
        if not (prompt.startswith(prefix) or prefix.startswith(prompt)):
            return False
        return self.locator.alone(messages[: turn.index + 1], tools, thinking).bare_headers > 0

    def surroundings(self, messages: Sequence[Message], tools: list[Any] | None, modes: Sequence[bool]) -> list[Key]:
        """Of each message: what may decide how it is rendered, but for the words."""
        fine = [self._code(message, modes[index]) for index, message in enumerate(messages)]
        codes = [code >> FINE for code in fine]
        after, later = [0] * len(codes), 0
        for index in range(len(codes) - 1, -1, -1):
            after[index] = later
            later |= 1 << codes[index]
        keys: list[Key] = []
        before = 0
        has_tools = bool(tools)
        for index, code in enumerate(codes):
            near = tuple(codes[max(index - 2, 0) : index + 3])
            own = tuple(fine[max(index - 1, 0) : index + 1])
            keys.append((has_tools, min(index, 2), before, after[index], near, own))
            before |= 1 << code
        return keys

    def _code(self, message: Message, thinking: bool) -> int:
        """A number for what a message is: its role, its mode, whether it calls and has a text, and in the last bits more of it."""
        content = message.get("content")
        kind = 0
        if type(content) is str and content:
            kind = 2 if content[0].isspace() or content[-1].isspace() else 1
        calls = min(len(message.get("tool_calls") or ()), 3)
        key = (message["role"], calls > 0, thinking, kind > 0)
        return (
            self.codes.setdefault(key, len(self.codes)) << FINE | kind << 3 | calls << 1 | (message.get("weight") == 0)
        )


def _holds_region(text: str, region: Region | None) -> bool:
    return region is not None and (text.startswith(region[0], region[1]) or region[0] in text)


def _key_of(tools: list[Any]) -> bytes:
    try:
        return orjson.dumps(tools)
    except TypeError:  # an integer of more than 64 bits, or half a surrogate pair
        return repr(tools).encode("utf-8", "surrogatepass")


def _what_is_lost(conversation: Conversation, made: list[Made], modes: list[bool]) -> list[str | None]:
    """Of each message, and last of the tools: what the template leaves out."""
    names: list[str | None] = [None] * (len(conversation.messages) + 1)
    for sequence, stop, turns in made:
        text = sequence.text
        for index, message in enumerate(conversation.messages[:stop]):
            if message["role"] != "assistant" or index in turns:
                names[index] = names[index] or lost(message_texts(message, modes[index]), text)
        names[-1] = names[-1] or lost(tool_texts(conversation.tools), text)
    return names


def _with_stand_ins(messages: Sequence[Message], letters: str) -> list[Message]:
    found: list[Message] = []
    for index, message in enumerate(messages):
        changed = dict(message)
        for name in ("content", "reasoning_content"):
            text = message.get(name)
            if isinstance(text, str) and text.strip():
                start = text[: len(text) - len(text.lstrip())]
                changed[name] = f"{start}{letters}{name[:1]}{index}{letters}{text[len(text.rstrip()) :]}"
        if "tool_calls" in message:
            changed["tool_calls"] = [
                _stand_in_call(call, f"{letters}{index}x{number}{letters}")
                for number, call in enumerate(message["tool_calls"])
            ]
        found.append(changed)
    return found


def _stand_in_call(call: dict[str, Any], word: str) -> dict[str, Any]:
    function = call["function"]
    arguments = {
        key: f"{word}{key}" if isinstance(value, str) and value else value
        for key, value in function["arguments"].items()
    }
    return {**call, "function": {**function, "name": f"{word}f", "arguments": arguments}}
