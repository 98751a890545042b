"""Proves on a row itself that its messages are printed: `printed_in_order`.

A text of a message may be found in a rendered text because another message contains it too. Here every message is searched only
where it must be, in a supervised chunk or between two of them, and after the message before it. Two messages are never found in
the same place, and short texts that the template itself prints prove nothing.
"""

from collections.abc import Iterator

from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.chat.whole import LONG, find, wanted_texts
from sft_hydra.records import Conversation

Made = tuple[RenderedSequence, int, list[int]]  # a sequence, number of the row's messages in it, supervised turns


def printed_in_order(conversation: Conversation, made: list[Made], modes: list[bool], source: str) -> set[int]:
    """Messages that every sequence which should print them does print. `modes[i]`: message i is in thinking mode; `source`: the
    template's source. Messages before the first supervised turn are left out if the row has tools, which are printed there."""
    printed = set(range(len(conversation.messages)))
    for sequence, stop, turns in made:
        found: set[int] = set()
        for first, last, chunk in _places(sequence, turns):
            if first == 0 and conversation.tools and last not in turns:
                continue
            position = 0
            for index in range(first, last + 1):
                place = _search(conversation, index, modes[index] and index in turns, chunk, position, source)
                if place < 0:
                    break
                found.add(index)
                position = place
        printed -= {
            index
            for index in range(stop)
            if index not in found and (index in turns or conversation.messages[index]["role"] != "assistant")
        }
    return printed


def _places(sequence: RenderedSequence, turns: list[int]) -> Iterator[tuple[int, int, str]]:
    """(first message, last message, the text that prints them): each supervised turn, and the messages between two of them.
    Nothing if a turn has several chunks."""
    if sum(sequence.trained) != len(turns):
        return
    context, first, place = "", 0, 0
    for chunk, trained in zip(sequence.chunks, sequence.trained, strict=True):
        if not trained:
            context += chunk
            continue
        turn = turns[place]
        if first < turn:
            yield first, turn - 1, context
        yield turn, turn, chunk
        context, first, place = "", turn + 1, place + 1


def _search(conversation: Conversation, index: int, reasoning: bool, chunk: str, position: int, source: str) -> int:
    """End of the message's texts, found one after the other from `position` on; -1 if one of them proves nothing."""
    for text in wanted_texts(conversation.messages[index], reasoning):
        place = find(text, chunk, position)
        if place < 0 or (len(text) < LONG and text.strip() in source):
            return -1
        position = place + len(text)
    return position
