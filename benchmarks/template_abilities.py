"""Whether a chat template can print a row at all, judged from renders of transformers alone: `prints(render, messages, tools)`.

A row is printable if each assistant turn has a form, among those that users of transformers pass (content as text or parts,
arguments as object or text, reasoning under its usual keys or inside the content, `developer` as `system`, both thinking modes),
such that `apply_chat_template`

- renders the messages up to the turn with the turn's texts, those of all messages that are not of the assistant, and the tools,
- renders the messages before the turn, with generation prompt, with theirs, and
- prints what the generation prompt adds before the turn's texts too, except for an empty reasoning block at its end.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

Messages = list[dict[str, Any]]
Render = Callable[..., str | None]  # (messages, tools, thinking, prompt); None: the template raises an error
REASONING = ("reasoning_content", "thinking", "reasoning", "")  # keys; "" inside the content
EMPTY_BLOCK = re.compile(
    r"(<[^<>/]*>\s*|\[[^/\[\]]*\]\s*|<\|channel>\w+\s*)?(</[^<>]*>|\[/[^\[\]]*\]|<\|[^<>]*end[^<>]*\|>|<channel\|>)\s*\Z",
    re.IGNORECASE,
)


def prints(render: Render, messages: Messages, tools: list[Any] | None) -> bool:
    """Whether the template can print every assistant turn of a row."""
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return all(
        any(_fits(render, form, turn, messages, tools) for form in _forms(messages[: turn + 1])) for turn in turns
    )


def texts(message: dict[str, Any]) -> Iterator[str]:
    """The texts of a message that a template must print."""
    yield from (message[key] for key in ("reasoning_content", "content") if message.get(key))
    for call in message.get("tool_calls", ()):
        yield call["function"]["name"]
        yield from call["function"]["arguments"].values()


def tool_words(tools: list[Any] | None) -> Iterator[str]:
    """Names of tools and of their parameters."""
    for tool in tools or ():
        yield tool["function"]["name"]
        yield from tool["function"]["parameters"]["properties"]


def _fits(render: Render, form: Messages, turn: int, messages: Messages, tools: list[Any] | None) -> bool:
    context = [text for message in messages[:turn] if message["role"] != "assistant" for text in texts(message)]
    wanted = [*context, *tool_words(tools)]
    for thinking in (False, True):
        prompt, whole = render(form[:turn], tools, thinking, True), render(form, tools, thinking, False)
        if prompt is None or whole is None or not all(text in prompt for text in wanted):
            continue
        shown = render(form[:turn], tools, thinking, False) or ""
        opener = prompt[len(_common(prompt, shown)) :].strip()
        if all(text in whole for text in texts(messages[turn])) and _follows(opener, whole, messages[turn], context):
            return True
    return False


def _common(first: str, second: str) -> str:
    size = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:size]


def _follows(opener: str, whole: str, message: dict[str, Any], context: list[str]) -> bool:
    """Whether the last turn, as printed in `whole`, follows the generation prompt `opener`."""
    start = max((whole.rfind(text) + len(text) for text in context if text in whole), default=0)
    stop = min(whole.rfind(text) for text in texts(message))
    header = whole[start : max(start, stop)]
    if opener in header:
        return True
    block = EMPTY_BLOCK.search(opener)
    return bool(block) and not message.get("reasoning_content") and opener[: block.start()].strip() in header


def _forms(messages: Messages) -> Iterator[Messages]:
    kinds = {key for message in messages for key in message} | {message["role"] for message in messages}
    choices = (
        (False, True),
        (False, True) if "tool_calls" in kinds else (False,),
        ("", None) if "tool_calls" in kinds else ("",),
        ("developer", "system") if "developer" in kinds else ("",),
        REASONING if "reasoning_content" in kinds else ("",),
    )
    for parts, text_arguments, empty, developer, key in product(*choices):
        yield [_shaped(message, parts, text_arguments, empty, developer, key) for message in messages]


def _shaped(
    message: dict[str, Any], parts: bool, text_arguments: bool, empty: str | None, developer: str, key: str
) -> dict[str, Any]:
    found = dict(message)
    if found["role"] == "developer":
        found["role"] = developer
    thought = found.pop("reasoning_content", None)
    if thought and key:
        found[key] = thought
    elif thought:
        found["content"] = f"<think>\n{thought}\n</think>\n\n{found['content']}"
    if "tool_calls" in found:
        found["content"] = found["content"] or empty
        if text_arguments:
            found["tool_calls"] = [_with_text(call) for call in found["tool_calls"]]
    if parts and isinstance(found["content"], str):
        found["content"] = [{"type": "text", "text": found["content"]}]
    return found


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"])}}
