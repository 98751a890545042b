"""Rows of other formats as OpenAI chat rows: `adapt(row, source) -> (messages, tools)`.

Owns what the formats are called and how they are told apart. Nothing is checked here beyond what is needed to convert.
"""

from typing import Any

import orjson

from sft_hydra.data_prep.benchmark_adapters import gsm8k, mmlu, oasst, squad
from sft_hydra.errors import RowError
from sft_hydra.records import Message
from sft_hydra.schema.data import SourceConfig

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
KNOWN_SETS = {"mmlu": mmlu, "gsm8k": gsm8k, "squad": squad, "oasst": oasst}
FORMATS = ("auto", "openai", "prompt_completion", "sharegpt", "alpaca", *KNOWN_SETS)


def adapt(row: Any, source: SourceConfig) -> tuple[Any, Any]:
    """Messages and tools of a row in the format that `source` names or, with `auto`, that its keys tell. Raises RowError."""
    if isinstance(row, list):  # a bare list of messages
        return row, None
    if not isinstance(row, dict):
        raise RowError("format", f"a row must be an object, not {type(row).__name__}")
    kind = _format_of(row, source) if source.format == "auto" else source.format
    tools = row.get(source.tools_key)
    if kind == "openai":
        messages = row.get(source.messages_key, row.get("conversations"))
    elif kind == "sharegpt":
        messages = _sharegpt(row.get("conversations", row.get(source.messages_key)))
    elif kind == "alpaca":
        messages = _alpaca(row)
    elif kind in KNOWN_SETS:
        messages = KNOWN_SETS[kind](row)
    else:
        messages = _prompt_completion(row, source)
    if source.system_key and isinstance(row.get(source.system_key), str):
        messages = [{"role": "system", "content": row[source.system_key]}, *_listed(messages)]
    elif kind in ("sharegpt", "alpaca") and isinstance(row.get("system"), str) and row["system"]:
        messages = [{"role": "system", "content": row["system"]}, *_listed(messages)]
    if source.system_prompt and not _starts_with_system(messages):
        messages = [{"role": "system", "content": source.system_prompt}, *_listed(messages)]
    return messages, tools


def _format_of(row: dict[str, Any], source: SourceConfig) -> str:
    if source.input_key or source.output_key:
        return "prompt_completion"
    if source.messages_key in row:
        return "openai"
    turns = row.get("conversations")
    if isinstance(turns, list):
        return "sharegpt" if any(isinstance(turn, dict) and "from" in turn for turn in turns) else "openai"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    return "openai"


def _sharegpt(turns: Any) -> list[Message]:
    messages: list[Message] = []
    for turn in _listed(turns):
        if not isinstance(turn, dict):
            raise RowError("format", "a turn of `conversations` must be an object")
        role = turn.get("from", turn.get("role"))
        value = turn.get("value", turn.get("content"))
        extra = {key: item for key, item in turn.items() if key not in ("from", "role", "value", "content")}
        if role == "function_call":
            messages.append({"role": "assistant", "content": "", "tool_calls": _calls_of(value)})
        else:
            messages.append({"role": SHAREGPT_ROLES.get(str(role), role), "content": value, **extra})
    return messages


def _calls_of(value: Any) -> list[Any]:
    try:
        found = orjson.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise RowError("tool_arguments", "function_call is not JSON") from None
    return found if isinstance(found, list) else [found]


def _alpaca(row: dict[str, Any]) -> list[Message]:
    question = row.get("instruction")
    if isinstance(question, str) and isinstance(row.get("input"), str) and row["input"]:
        question = f"{question}\n\n{row['input']}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": row.get("output")}]


def _prompt_completion(row: dict[str, Any], source: SourceConfig) -> list[Message]:
    prompt = row.get(source.input_key or "prompt")
    completion = row.get(source.output_key or "completion")
    if source.prompt and isinstance(prompt, str):
        prompt = source.prompt.replace("{}", prompt)
    head = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    tail = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    return [*head, *tail]


def _listed(messages: Any) -> list[Any]:
    if not isinstance(messages, list):
        raise RowError("no_messages", f"expected a list of messages, found {type(messages).__name__}")
    return messages


def _starts_with_system(messages: Any) -> bool:
    return bool(_listed(messages)) and isinstance(messages[0], dict) and messages[0].get("role") == "system"
