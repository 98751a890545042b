"""Rows of other formats as OpenAI chat rows: `adapt(row, source) -> Adapted`.

Defines the names of the formats, how a row's format is detected, and which keys of a row are read. Invariant: a key that
determines what is supervised or what the model sees is read, or its row raises RowError; all others are listed in `unread`.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sft_hydra.chat.calls import parse_json
from sft_hydra.chat.flags import looks_like_a_flag
from sft_hydra.chat.reasoning import reasoning_text
from sft_hydra.chat.roles import role_of
from sft_hydra.data_prep import tool_definitions
from sft_hydra.data_prep.benchmark_adapters import gsm8k, mmlu, oasst, squad
from sft_hydra.data_prep.row_flags import KEYS as ROW_FLAGS
from sft_hydra.data_prep.row_flags import apply_row_flags
from sft_hydra.data_prep.turn_pairs import messages_of_pairs
from sft_hydra.errors import RowError
from sft_hydra.records import Message
from sft_hydra.schema.data import SourceConfig

KNOWN_SETS = {"mmlu": mmlu, "gsm8k": gsm8k, "squad": squad, "oasst": oasst}
MESSAGES, TOOLS = "messages", "tools"  # the columns, unless the source names others
AUTO = (None, "auto")
FORMATS = ("auto", "openai", "prompt_completion", "sharegpt", "alpaca", "text", *KNOWN_SETS)
SYSTEM = ("system", "system_prompt", "system_message", "systemInstruction", "system_instruction")
PAIRS = (("prompt", "completion"), ("query", "response"), ("prompt", "response"))  # question and answer columns
REASONING = ("reasoning_content", "reasoning", "thinking")  # columns beside a question and an answer
KWARGS = {
    "enable_thinking": bool,
    "thinking": bool,
    "reasoning_effort": str,
    "documents": list,
}  # columns for the template
OWN = frozenset({"messages", "tools", "add_generation_prompt", "chat_template_kwargs"})
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
COLUMNS = frozenset({*SYSTEM, *KWARGS, *MEDIA, *ROW_FLAGS, *tool_definitions.KEYS, "tools", "chat_template_kwargs"})


@dataclass(slots=True)
class Adapted:
    """A row as chat messages. `messages` are in OpenAI's format, `tools` a list of definitions or None, `kwargs` are variables
    for the chat template, `read` are the row's keys that were used."""

    messages: Any
    tools: Any = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)


def adapt(row: Any, source: SourceConfig) -> Adapted:
    """Messages and tools of a row, in the format that `source` names or, with `auto`, that its keys indicate. RowError if the
    row does not have that format."""
    if isinstance(row, list):  # a bare list of messages
        return Adapted(row)
    if not isinstance(row, dict):
        raise RowError("format", f"a row must be an object, not {type(row).__name__}")
    if _has_only_messages(row, source):  # most rows: a cheap test
        messages_key = source.messages_key or MESSAGES
        return Adapted(row[messages_key], read=_keys_of(messages_key))
    kind = _format_of(row, source) if source.format in AUTO else source.format
    read: set[str] = set()
    if kind in KNOWN_SETS:
        messages: Any = KNOWN_SETS[kind](row)
        read |= set(row)
    elif kind == "alpaca":
        messages = _alpaca(row, read)
    elif kind == "prompt_completion":
        messages = _prompt_completion(row, source, read)
    else:
        messages = _messages(row, source, kind, read)
    found = Adapted(messages, read=read)
    if len(row) > 1 and kind not in KNOWN_SETS:
        _add_columns(row, source, kind, found)
    if source.system_prompt and not _starts_with_system(found.messages):
        found.messages = [{"role": "system", "content": source.system_prompt}, *_listed(found.messages)]
    return found


def unread_beside_messages(keys: Collection[str], source: SourceConfig) -> tuple[str, ...] | None:
    """The keys of a row with these keys that `adapt` does not read, if it reads only the messages; else None."""
    if not _has_only_messages(keys, source):
        return None
    return tuple(key for key in keys if key != (source.messages_key or MESSAGES))


def _has_only_messages(keys: Collection[str], source: SourceConfig) -> bool:
    if (source.messages_key or MESSAGES) not in keys or not COLUMNS.isdisjoint(keys):
        return False
    return _is_usual(source) and not any(map(looks_like_a_flag, keys))


def _is_usual(source: SourceConfig) -> bool:
    others = source.input_key or source.output_key or source.system_prompt or source.system_key
    return source.format in AUTO and not others and source.tools_key in (None, TOOLS)


@cache
def _keys_of(messages_key: str) -> set[str]:
    return {messages_key}


def _add_columns(row: dict[str, Any], source: SourceConfig, kind: str | None, found: Adapted) -> None:
    """Read the columns beside the messages: flags, tools, a system message, template variables."""
    columns = COLUMNS.intersection(row)
    flagged = any(map(looks_like_a_flag, row))
    if columns or (source.tools_key or TOOLS) in row:
        found.tools = _tools(row, source, found.read)
    if flagged or (columns and columns != {"tools"}):
        found.messages = apply_row_flags(row, found.messages, found.read, kind in ("prompt_completion", "alpaca"))
        found.kwargs = _kwargs(row, found)
        _check_media(row)
    if source.system_key:
        found.read.add(source.system_key)
        if isinstance(row.get(source.system_key), str):
            found.messages = [{"role": "system", "content": row[source.system_key]}, *_listed(found.messages)]
        return
    for key in columns.intersection(SYSTEM):
        if key not in found.read:
            found.read.add(key)
            found.messages = _with_system(key, _plain_text(key, row[key]), found.messages)


def _check_media(row: dict[str, Any]) -> None:
    """RowError for media, also where no text refers to them: other tools put them before the first text."""
    media = [key for key in MEDIA if any(row[key] if isinstance(row.get(key), list) else [row.get(key)])]
    if media:
        raise RowError(
            "content",
            f"the row has {', '.join(media)}; only text is supported; remove the column if the text is complete without it",
        )


def _format_of(row: dict[str, Any], source: SourceConfig) -> str:
    if source.input_key or source.output_key:
        return "prompt_completion"
    if (source.messages_key or MESSAGES) in row:
        return "openai"
    turns = row.get("conversations")
    if isinstance(turns, list):
        return "sharegpt" if any(isinstance(turn, dict) and "from" in turn for turn in turns) else "openai"
    if isinstance(row.get("contents"), list):
        return "gemini"
    if isinstance(row.get("conversation"), list):
        return "openai"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if any(question in row and answer in row for question, answer in PAIRS):
        return "prompt_completion"
    return "openai"


def _messages(row: dict[str, Any], source: SourceConfig, kind: str | None, read: set[str]) -> Any:
    order = [source.messages_key or MESSAGES, "conversations", "conversation", "contents"]
    if kind == "sharegpt":
        order = ["conversations", order[0]]
    key = next((name for name in order if name in row), order[0])
    read.add(key)
    messages = row.get(key)
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = parse_json(messages)
    if kind == "sharegpt" and not all(isinstance(turn, dict) for turn in _listed(messages)):
        raise RowError("format", "every turn of `conversations` must be an object")
    return messages_of_pairs(messages)


def _alpaca(row: dict[str, Any], read: set[str]) -> list[Message]:
    read |= {"instruction", "input", "output", "history"}
    question = row.get("instruction")
    if isinstance(question, str) and isinstance(row.get("input"), str) and row["input"]:
        question = f"{question}\n\n{row['input']}"
    answer = _with_reasoning({"role": "assistant", "content": _one_answer(row, "output")}, row, read)
    return [*_history(row.get("history")), {"role": "user", "content": question}, answer]


def _one_answer(row: dict[str, Any], key: str) -> Any:
    """The answer in a column. RowError for a list of several texts: they are alternatives, not parts of one answer."""
    value = row.get(key)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value):
        raise RowError("content", f"{key} is a list of {len(value)} texts; a row has one answer")
    return value


def _prompt_completion(row: dict[str, Any], source: SourceConfig, read: set[str]) -> list[Message]:
    pair = next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), PAIRS[0])
    question, answer = source.input_key or pair[0], source.output_key or pair[1]
    read |= {question, answer, "history"}
    prompt, completion = row.get(question), row.get(answer)
    if source.prompt and isinstance(prompt, str):
        prompt = source.prompt.replace("{}", prompt)
    head = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if isinstance(completion, dict):
        completion = [completion]
    if isinstance(completion, list):
        tail = completion
    else:
        tail = [_with_reasoning({"role": "assistant", "content": completion}, row, read)]
    return [*_history(row.get("history")), *map(_as_context, head), *tail]


def _as_context(message: Any) -> Any:
    """A message of a prompt: an assistant message there is not supervised."""
    if not isinstance(message, dict) or role_of(str(message.get("role", message.get("from")))) != "assistant":
        return message
    return {**{key: value for key, value in message.items() if key != "train"}, "weight": 0}


def _history(history: Any) -> list[Message]:
    """Earlier turns: pairs of question and answer, or messages. Raises RowError for anything else."""
    if not history:
        return []
    messages: list[Message] = []
    for turn in history if isinstance(history, list) else [history]:
        if isinstance(turn, dict) and ("role" in turn or "from" in turn):
            messages.append(turn)
        elif isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        else:
            raise RowError("history", "history must be a list of [question, answer] or of messages")
    return messages


def _with_reasoning(answer: Message, row: dict[str, Any], read: set[str]) -> Message:
    for key in REASONING:
        value = row.get(key)
        if isinstance(value, str) and value.strip().lower() in ("", "on", "off"):
            continue
        if text := reasoning_text(key, value):
            read.add(key)
            return {**answer, "reasoning_content": text}
    return answer


def _tools(row: dict[str, Any], source: SourceConfig, read: set[str]) -> Any:
    found: Any = None
    for key in dict.fromkeys((source.tools_key or TOOLS, TOOLS, *tool_definitions.KEYS)):
        if key not in row:
            continue
        if row[key] not in (None, "", [], {}):
            tools = tool_definitions.read_tools(row[key])
            if found and tools and tools != found:
                raise RowError("tools", f"the row's {key} differs from its other tools")
            found = found or tools
        read.add(key)
    return found


def _kwargs(row: dict[str, Any], found: Adapted) -> dict[str, Any]:
    """Variables that the row passes to the chat template."""
    variables = row.get("chat_template_kwargs")
    found.read.add("chat_template_kwargs")
    if isinstance(variables, str):
        variables = parse_json(variables) if variables.strip() else None
    if not isinstance(variables, dict | None):
        raise RowError("chat_template_kwargs", f"must be an object, not {type(variables).__name__}")
    kwargs = {
        key: row[key] for key, kind in KWARGS.items() if isinstance(row.get(key), kind) and row[key] not in ("", [])
    }
    kwargs |= {str(key): value for key, value in (variables or {}).items() if value is not None}
    if kwargs.get("tools"):
        tools = tool_definitions.read_tools(kwargs["tools"])
        if found.tools and tools != found.tools:
            raise RowError("tools", "the tools of chat_template_kwargs differ from the row's")
        found.tools = tools
    kwargs.pop("tools", None)
    if taken := OWN.intersection(kwargs):
        raise RowError("chat_template_kwargs", f"{', '.join(sorted(taken))} cannot be set by a row; remove it")
    return kwargs


def _plain_text(key: str, value: Any) -> str:
    """A system text: a string, a list of text parts, or Gemini's object of parts."""
    if isinstance(value, dict):
        value = value.get("parts", value.get("content", [value]))
    if isinstance(value, list):
        texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in value]
        value = "".join(texts) if all(isinstance(text, str) for text in texts) else value
    if value is not None and not isinstance(value, str):
        raise RowError("system", f"the row's {key} must be text, not {type(value).__name__}")
    return value or ""


def _with_system(key: str, text: str, messages: Any) -> Any:
    if not text.strip():
        return messages
    if not _starts_with_system(messages):
        return [{"role": "system", "content": text}, *_listed(messages)]
    own = messages[0].get("content", messages[0].get("value"))
    if not isinstance(own, str) or own.strip() != text.strip():
        raise RowError("system", f"the row's {key} differs from its system message; keep one of them")
    return messages


def _listed(messages: Any) -> list[Any]:
    if not isinstance(messages, list):
        raise RowError("no_messages", f"expected a list of messages, found {type(messages).__name__}")
    return messages


def _starts_with_system(messages: Any) -> bool:
    if not _listed(messages) or not isinstance(messages[0], dict):
        return False
    return role_of(str(messages[0].get("role", messages[0].get("from")))) in ("system", "developer")
