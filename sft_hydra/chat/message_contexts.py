"""The contexts of messages: `MessageContexts.of` describes all that may decide how each message of a row is rendered, except its
texts, so that what was checked for one row need not be checked for the next.

A context has the kinds of the messages around, and which kinds there are before and after: in the same turn (up to the next user
message) and in other turns, because templates render earlier turns in another way. A kind is the role, the thinking mode, and
whether there are calls and a text.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sft_hydra.records import Message

FINE = 5  # low bits of a message code, compared only with the turn itself and the message before it
Key = tuple[Any, ...]


class MessageContexts:
    """Contexts of the messages of rows; comparable only within one instance. Those of the last row are kept, because they are
    needed several times."""

    def __init__(self) -> None:
        self.codes: dict[Key, int] = {}
        self.users: set[int] = set()  # the codes of user messages
        self.known: tuple[Any, ...] = ()  # messages, has tools, modes and contexts of the last row
        # messages, modes and codes of the last row
        self.coded: tuple[list[Message], list[bool], list[int]] = ([], [], [])

    def of(self, messages: Sequence[Message], tools: list[Any] | None, modes: Sequence[bool]) -> list[Key]:
        """The context of each message: all that may decide how it is rendered, except its texts."""
        same = self.known
        if same and same[0] == messages and same[1] == bool(tools) and same[2] == modes:
            found: list[Key] = same[3]
            return found
        keys = self._contexts(messages, tools, modes)
        self.known = (list(messages), bool(tools), list(modes), keys)
        return keys

    def _contexts(self, messages: Sequence[Message], tools: list[Any] | None, modes: Sequence[bool]) -> list[Key]:
        fine = self._fine_codes(messages, modes)
        codes = [code >> FINE for code in fine]
        after = list(self._sets(reversed(codes)))
        after.reverse()
        return [
            (bool(tools), min(index, 2), before, after[index], *_near(codes, fine, index))
            for index, before in enumerate(self._sets(codes))
        ]

    def last(self, messages: Sequence[Message], tools: list[Any] | None, modes: Sequence[bool]) -> Key:
        """`of(...)[-1]`."""
        fine = self._fine_codes(messages, modes)
        codes = [code >> FINE for code in fine]
        *_, before = self._sets(codes)
        return (bool(tools), min(len(fine) - 1, 2), before, (0, 0), *_near(codes, fine, len(fine) - 1))

    def _sets(self, codes: Iterable[int]) -> Iterator[tuple[int, int]]:
        """For each message the kinds of those before it, as bits: since the last user message, and in earlier turns."""
        turn = earlier = 0
        for code in codes:
            yield turn, earlier
            turn |= 1 << code
            if code in self.users:
                turn, earlier = 0, earlier | turn

    def _fine_codes(self, messages: Sequence[Message], modes: Sequence[bool]) -> list[int]:
        """The code of each message. Those of the last row are reused, because its turns are often rendered one by one."""
        known, known_modes, fine = self.coded
        count, both = len(messages), min(len(messages), len(known))
        if known[:both] != messages[:both] or known_modes[:both] != modes[:both]:
            both, fine = 0, []
        if both < count:
            fine = [*fine[:both], *map(self._code, messages[both:], modes[both:])]
            self.coded = (list(messages), list(modes), fine)
        return fine[:count]

    def _code(self, message: Message, thinking: bool) -> int:
        """A code of a message's kind: role, mode, whether it has calls and text; in the low FINE bits white space, calls, weight."""
        content = message.get("content")
        kind = 0
        if content and content.__class__ is str:
            kind = 2 if content[0].isspace() or content[-1].isspace() else 1
        if len(message) == 2:  # most messages: role and content
            calls = weight = 0
        else:
            calls, weight = min(len(message.get("tool_calls") or ()), 3), message.get("weight") == 0
        key = (message["role"], calls > 0, thinking, kind > 0)
        code = self.codes.get(key)
        if code is None:
            code = self.codes[key] = len(self.codes)
            if message["role"] == "user":
                self.users.add(code)
        return code << FINE | kind << 3 | calls << 1 | weight


def part_context(context: Key) -> Key:
    """What decides which parts of a message are printed: less than decides how they are."""
    has_tools, index, (turn, earlier), (until, later), _, own = context
    return (has_tools, index, turn | earlier, until | later, own)


def end_context(context: Key) -> Key:
    """What decides whether a turn is printed in the same way as when it is the last one: what follows, and the turn itself."""
    has_tools, _, _, (until, later), _, own = context
    return (has_tools, until | later, own)


def _near(codes: list[int], fine: list[int], index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is compared of the messages around a message: kinds of two on either side, and more of the one before it and itself."""
    return tuple(codes[max(index - 2, 0) : index + 3]), tuple(fine[max(index - 1, 0) : index + 1])
