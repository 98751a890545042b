"""The supervised text of a turn whose rendered text does not start with the generation prompt: `continuation`."""

import re
from collections.abc import Collection
from typing import Any

from sft_hydra.chat.ends import CONTROL
from sft_hydra.chat.text import common_prefix, tag_edge
from sft_hydra.records import Message

OPENS_REASONING = re.compile(r"[<\[|](?!/)[^<>\[\]/]*think[^<>\[\]/]*[>\]]\s*\Z", re.IGNORECASE)
CLOSED = re.compile(
    r"(</[^<>]*think[^<>]*>|\[/think\]|<channel\|>|<\|[^<>]*end_?(of_)?think[^<>]*\|>)\s*\Z", re.IGNORECASE
)
LONGEST_TAG = 80  # characters, with white space after it
TAG_END = re.compile(r"[>\]]")
CLOSES = re.compile(r"(?<![a-z])end(?![a-z])", re.IGNORECASE)


def closes_reasoning(prompt: str) -> bool:
    """Whether a generation prompt ends with a closed reasoning block, so that reasoning cannot follow."""
    return CLOSED.search(prompt, max(len(prompt) - LONGEST_TAG, 0)) is not None


def continuation(own: str, prompt: str, message: Message, headers: Collection[str] = ()) -> tuple[str | None, bool]:
    """(supervised text, is_open) of a turn that follows the generation prompt `prompt`.

    `own` is what the template prints for the turn, including its header. `headers`: what it prints before the words of answers,
    among them white space or "" if some answers have no header. The text is None if the turn has another header than
    the prompt, or reasoning that the prompt does not open. `is_open`: the prompt opens reasoning, but the turn has none, so
    the text does not continue the prompt."""
    if not prompt and not own[: _first_word(own, message)].strip():  # a template whose turns have no header
        return own, False
    if prompt and own.startswith(prompt):
        return own[len(prompt) :], False
    if _has_no_header(own, message, headers) and (not prompt.strip() or _is_empty_block(prompt, headers)):
        return (None if _reasoning(message) else own.lstrip() if prompt[-1:].isspace() else own), False
    header = tag_edge(common_prefix([prompt, own])) if prompt else ""
    scaffold, rest = prompt[len(header) :], own[len(header) :]
    again = _repeated(scaffold, rest)
    if not header.strip() and not again:
        return None, False
    first = _first_word(rest, message)
    printed = rest[:first]
    if printed.strip().startswith(scaffold.strip()):  # they differ only in white space
        cut = printed.index(scaffold.strip()) + len(scaffold.strip()) if scaffold.strip() else 0
        after = printed[cut:]
        return (after.lstrip() if scaffold[-1:].isspace() else after) + rest[first:], False
    if _reasoning(message):
        return None, False
    tag = OPENS_REASONING.search(scaffold)
    opens = bool(tag and not CLOSES.search(tag[0]))
    if CONTROL.match(scaffold.lstrip()) and not opens:  # an empty reasoning block before the answer
        return rest[len(again) :], False
    return rest, True


def _has_no_header(own: str, message: Message, headers: Collection[str]) -> bool:
    """Whether the template prints a turn without a header, as it does some answers."""
    words = [header for header in headers if header.strip()]
    if len(words) == len(headers) or own.startswith(tuple(words)):
        return False
    return "tool_calls" in message or not own[: _first_word(own, message)].strip()


def _is_empty_block(prompt: str, headers: Collection[str]) -> bool:
    """Whether a prompt is only an empty reasoning block: it follows a tool result in a turn that goes on."""
    if prompt.startswith(tuple(header for header in headers if header.strip())):
        return False
    return CONTROL.match(prompt.lstrip()) is not None and closes_reasoning(prompt)


def _reasoning(message: Message) -> Any:
    return message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")


def _repeated(scaffold: str, rest: str) -> str:
    """The tags at the end of `scaffold` that `rest` starts with: templates may print only the closing tag of an empty block."""
    core = scaffold.rstrip()
    for match in reversed(list(TAG_END.finditer(rest, 0, len(core)))):
        if core.endswith(rest[: match.end()]):
            return common_prefix([rest, rest[: match.end()] + scaffold[len(core) :]])
    return ""


def _first_word(rest: str, message: Message) -> int:
    """Position of the first of the message's texts in `rest`; 0 if it contains none of them."""
    texts: list[Any] = [message.get(key) for key in ("reasoning_content", "reasoning", "thinking", "content")]
    texts += [call["function"]["name"] for call in message.get("tool_calls") or ()]
    places = [rest.find(text.strip()) for text in texts if isinstance(text, str) and text.strip()]
    return min((place for place in places if place >= 0), default=0)
