"""Compares rendered sequences with what a server renders: `Checks.holds` (the text before every supervised turn is the prompt
that the template renders for the messages before it) and `Checks.dropped` (parts of a row that are missing from its text).

Results are cached by context: a turn whose context (roles and kinds of fields around, before and after it) was checked before
is trusted, unless a content of its row contains a text that the template searches for. One row in EVERY is checked anyway; a
difference raises LearnedWrongError, and the shard is rendered again with every turn checked.
"""

from collections.abc import Callable, Sequence, Set
from typing import Any

import orjson

from sft_hydra.chat.message_contexts import Key, MessageContexts, end_context, part_context
from sft_hydra.chat.printed_in_order import Made, printed_in_order
from sft_hydra.chat.resource_limits import LimitError
from sft_hydra.chat.splice import closes_reasoning
from sft_hydra.chat.template_traits import TemplateTraits
from sft_hydra.chat.text import shortest
from sft_hydra.chat.turn_spans import RenderedSequence, Turn, TurnSpans
from sft_hydra.chat.whole import LONG, are_unique, lost, lost_of_messages, message_texts, tool_texts
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation, Message

EVERY = 61  # rows; odd, so that both kinds of alternating rows are checked
MOST_REGIONS = 10_000
BETWEEN = "\0"  # joins texts that are searched together; literals of templates do not contain it
Region = tuple[str, int]


class LearnedWrongError(Exception):
    """A cached check result is wrong: a turn is rendered unlike others in the same context."""


class Checks:
    """Checks of one template. `careful`: check every turn, without cached results."""

    def __init__(self, locator: TurnSpans, traits: TemplateTraits, literals: Set[str], source: str) -> None:
        self.locator = locator
        self.traits = traits
        self.literals = shortest(text for text in literals if not text.isalnum())
        self.source = source
        self.careful = False
        self.contexts = MessageContexts()
        self.forget()

    def forget(self) -> None:
        """Clear the cached results, so that a shard's output does not depend on the shards before it."""
        self.good: dict[Key, bool] = {}
        self.whole: dict[Key, str | None] = {}
        self.regions: dict[bytes, Region] = {}  # tools -> the part of a text that prints them, and its position
        self.rows = 0
        self.last_tools: tuple[list[Any] | None, bytes] = (None, b"")

    def holds(
        self,
        text: str,
        found: list[Turn],
        messages: Sequence[Message],
        tools: list[Any] | None,
        modes: Sequence[bool],
        trusted: bool,
    ) -> bool:
        """Whether each turn follows its serving prompt (for bare turns: as far as the template allows). `trusted`: use cached
        results. Raises LearnedWrongError."""
        keys = self.contexts.of(messages, tools, modes)
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
            holds = self._stands(text, turn, messages, tools, modes[turn.index]) and (
                turn.bare
                or self._ends_as_served(text, turn, messages, tools, modes, key if trusted and not known else None)
            )
            if known and not holds:
                raise LearnedWrongError
            if trusted:
                self.good[key] = holds
            if not holds:
                return False
        return True

    def fails(
        self, messages: Sequence[Message], tools: list[Any] | None, modes: Sequence[bool], turns: list[int]
    ) -> bool:
        """Whether one of these turns did not follow its serving prompt in this context before, so that `holds` need not be
        called."""
        if self.careful:
            return False
        keys = self.contexts.of(messages, tools, modes)
        return any(self.good.get(keys[turn]) is False for turn in turns)

    def by_context(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None,
        modes: Sequence[bool],
        quick: Callable[[], RenderedSequence | None],
        sure: Callable[[], RenderedSequence],
    ) -> RenderedSequence:
        """The sequence of the last turn: `quick()` if it equalled `sure()` in this context before, else `sure()`. Raises
        LearnedWrongError."""
        key = ("alone", self.contexts.last(messages, tools, modes))
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
        """Whether a message contains a text that the template searches for."""
        texts = [text for message in messages if type(text := message.get("content")) is str]
        texts += [text for message in messages if type(text := message.get("reasoning_content")) is str]
        text = BETWEEN.join(texts)
        return any(literal in text for literal in self.literals)

    def dropped(self, conversation: Conversation, made: list[Made], modes: list[bool]) -> str | None:
        """Name of the first part of a row that is missing from its sequences; None if nothing is missing."""
        for sequence, stop, turns in made:
            text = sequence.text
            missing = None if self._has_tools(text, conversation.tools) else lost(tool_texts(conversation.tools), text)
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
        """Name of a part that the template leaves out of rows with this context, found by rendering unique stand-in texts.
        Parts whose own place in the row's texts was found (`dropped`, `printed_in_order`) need no stand-ins."""
        keys = [part_context(key) for key in self.contexts.of(conversation.messages, conversation.tools, modes)]
        keys.append(("tools", frozenset(keys)) if conversation.tools else ())
        if self.careful or self._is_open(conversation, keys, made, modes):
            self._learn_whole(conversation, keys, remake, modes)
        return next((name for key in keys if (name := self.whole.get(key)) is not None), None)

    def _is_open(self, conversation: Conversation, keys: list[Key], made: list[Made], modes: list[bool]) -> bool:
        """Whether a part of a row may be missing although its text is found, because the same text occurs elsewhere."""
        new_tools = conversation.tools and keys[-1] not in self.whole
        if new_tools and not all(self._has_tools(sequence.text, conversation.tools) for sequence, _, _ in made):
            return True
        new = [index for index, key in enumerate(keys[:-1]) if key not in self.whole]
        if new:
            printed = printed_in_order(conversation, made, modes, self.source)
            unsure = [conversation.messages[index] for index in new if index not in printed]
            if unsure and not are_unique(unsure, conversation, self.source):
                return True
        self.whole.update((keys[index], None) for index in new)
        return False

    def _has_tools(self, text: str, tools: list[Any] | None) -> bool:
        """Whether a text contains these tools as they were printed before; False if they are new."""
        if not tools:
            return False
        if self.last_tools[0] is not tools:
            self.last_tools = (tools, _key_of(tools))
        region = self.regions.get(self.last_tools[1])
        if region is None:
            return False
        if text.startswith(region[0], region[1]):
            return True
        if (place := text.find(region[0])) >= 0:
            self.regions[self.last_tools[1]] = region[0], place  # rows with the same system message have it there too
        return place >= 0

    def _learn_whole(
        self,
        conversation: Conversation,
        keys: list[Key],
        remake: Callable[[Conversation], list[Made]],
        modes: list[bool],
    ) -> None:
        found: list[list[str | None]] = []
        for letters in ("Kw", "mb"):  # two spellings, in case the template replaces letters
            stand_in = Conversation(_with_stand_ins(conversation.messages, letters), conversation.tools, "", "")
            try:
                made = remake(stand_in)
            except LimitError:
                raise
            except Exception:  # the template rejects the stand-ins: use the row itself
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
        """Remember how the tools are printed, from a text whose messages contain none of their words."""
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
            return prompt == prefix and not (thinking and closes_reasoning(prefix))
        if prompt is None:  # the assistant opens the conversation: there is no prompt
            return True
        if not (prompt.startswith(prefix) or prefix.startswith(prompt)):
            return False
        return self.locator.alone(messages[: turn.index + 1], tools, thinking).bare_headers > 0

    def _ends_as_served(
        self,
        text: str,
        turn: Turn,
        messages: Sequence[Message],
        tools: list[Any] | None,
        modes: Sequence[bool],
        context: Key | None,
    ) -> bool:
        """Whether a turn reads the same as when it is the last one, as the model writes it. `context`: use the cached result of
        turns like it."""
        key = None if context is None or self.careful else ("end", end_context(context))
        known = self.good.get(key) if key else None
        if known is not None:
            return known
        try:
            alone = self.locator.alone(messages[: turn.index + 1], tools, modes[turn.index])
        except RowError as problem:
            same = problem.reason != "end_of_turn"  # else only the whole conversation shows this turn
        except LimitError:
            raise
        except Exception:  # a template may raise an error for a part of the conversation
            same = True
        else:
            own = "".join(text[start:stop] for start, stop in turn.spans).rstrip()
            same = alone.chunks[-1].startswith(own)  # a last turn may have the end of the conversation too
        if key:
            self.good[key] = same
        return same


def _key_of(tools: list[Any]) -> bytes:
    try:
        return orjson.dumps(tools)
    except TypeError:  # an integer of more than 64 bits, or a lone surrogate
        return repr(tools).encode("utf-8", "surrogatepass")


def _what_is_lost(conversation: Conversation, made: list[Made], modes: list[bool]) -> list[str | None]:
    """What the template leaves out of each message and, last, of the tools; None where nothing is missing."""
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
