"""Filters of conversations: `Filters.check` raises RowError for a rejected one.

On by default: structure, tools, tools_missing. Each filter is a function of one Conversation; rejections are counted by the
name of the filter and written to rejects.jsonl with the origin of the row.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson

from sft_hydra.chat.resource_limits import LimitError, limit_resources
from sft_hydra.errors import ConfigError, RowError
from sft_hydra.records import Conversation, Message
from sft_hydra.schema.data import FilterConfig

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
TOOL_CALL = "<tool_call>"
TOOLS_HEADER = "# Tools"
REPEATED_WORDS = 8  # a run of this many words...
REPEATED_SHARE = 0.3  # ...that fills more than this share of an answer is rejected
SCHEMA_SECONDS = 1.0  # time limit for the arguments of one call
SHORT_ANSWER = 64  # answers of fewer words are not tested for repetition


class Filters:
    """The filters that `data.filters` enables, with compiled patterns and cached tool schemas. ConfigError for an invalid
    pattern."""

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        try:
            self.patterns = [re.compile(pattern) for pattern in config.patterns]
        except re.error as problem:
            raise ConfigError(
                f"data.filters.patterns: {problem.pattern!r} is not a valid regular expression ({problem})"
            ) from None
        self.validators: dict[bytes, Any] = {}

    def check(self, conversation: Conversation) -> None:
        """RowError, with the filter's name as its reason, if a filter rejects the conversation."""
        config = self.config
        if config.structure and not conversation.is_text:
            _check_structure(conversation)
        if config.tools:
            for message in conversation.messages:
                if "tool_calls" in message:
                    self._check_tools(conversation)
                    break
        if config.tools_missing:
            _check_tools_missing(conversation)
        if config.equals:
            _check_equals(conversation, config.equals)
        if config.repetition:
            _check_repetition(conversation)
        for pattern in self.patterns:
            for message in _answers(conversation):
                for text in _texts(message):
                    if found := pattern.search(text):
                        raise RowError("patterns", f"{pattern.pattern!r} matches {found[0][:80]!r}")

    def _check_tools(self, conversation: Conversation) -> None:
        calls = [call for message in _answers(conversation) for call in message.get("tool_calls", ())]
        known = {
            tool.get("function", tool).get("name"): tool.get("function", tool) for tool in conversation.tools or ()
        }
        header = _headers(conversation)
        ids = [call["id"] for call in calls if call.get("id")]
        for call in calls:
            name = call["function"]["name"]
            if name not in known and name not in header:
                tools = f"its tools are {sorted(map(str, known))}" if known else "it has no tools"
                raise RowError(
                    "tools", f"call of undefined tool {name!r}: {tools}, and the text before the call does not name it"
                )
            if name in known and self.config.tool_schema:
                self._check_arguments(known[name], call["function"]["arguments"])
        for message in conversation.messages:
            refers = message.get("tool_call_id") if message["role"] == "tool" else None
            if refers and len(ids) == len(calls) and refers not in ids:
                raise RowError("tools", f"tool result for unknown call id {refers!r}")

    def _check_arguments(self, tool: dict[str, Any], arguments: dict[str, Any]) -> None:
        try:
            with limit_resources(SCHEMA_SECONDS):
                validator = self._validator(tool.get("parameters"))
                if validator is None:
                    return
                problems = list(validator.iter_errors(arguments))
                wrong = {problem.path[0] for problem in problems if problem.path}
                if not problems or validator.is_valid(_spelled_out(arguments, wrong)):
                    return
        except LimitError:
            raise RowError(
                "tool_schema", f"checking the schema of {tool.get('name')!r} took more than {SCHEMA_SECONDS:g} s"
            ) from None
        except Exception:  # an invalid schema: the row cannot be checked against it
            return
        raise RowError("tool_schema", f"arguments of {tool.get('name')!r}: {problems[0].message[:200]}")

    def _validator(self, schema: Any) -> Any:
        if not isinstance(schema, dict) or not schema:
            return None
        key = orjson.dumps(schema)
        if key not in self.validators:
            if len(self.validators) > 10_000:
                self.validators.clear()
            if "properties" not in schema and "type" not in schema:  # a bare map of properties
                schema = {"type": "object", "properties": schema}
            import jsonschema  # slow to import, and rarely needed
            from referencing import Registry

            self.validators[key] = jsonschema.Draft202012Validator(schema, registry=Registry())
        return self.validators[key]


def _headers(conversation: Conversation) -> str:
    """Text before the first assistant message, where tools may be listed in a format of its own."""
    first = next(i for i, message in enumerate(conversation.messages) if message["role"] == "assistant")
    texts = [str(message.get("content", "")) for message in conversation.messages[:first]]
    if conversation.template_kwargs:  # some templates take tools from there
        texts.append(str(conversation.template_kwargs))
    return "\n".join(texts)


def _spelled_out(arguments: dict[str, Any], keys: set[Any]) -> dict[str, Any]:
    """Arguments with JSON strings under `keys` ("7", "[1]") parsed: many models write numbers and lists as text."""
    return {k: _value_of(value) if k in keys and isinstance(value, str) else value for k, value in arguments.items()}


def _value_of(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return text


def _answers(conversation: Conversation) -> Iterator[Message]:
    return (message for message in conversation.messages if message["role"] in ("assistant", "text"))


def _texts(message: Message) -> Iterator[str]:
    return (message[key] for key in ("content", "reasoning_content") if message.get(key))


def _check_structure(conversation: Conversation) -> None:
    roles = [message["role"] for message in conversation.messages]
    if not ROLES.issuperset(roles):
        raise RowError("structure", f"unknown roles {', '.join(sorted({*roles} - ROLES))}")
    if "assistant" not in roles:
        raise RowError("structure", "the conversation has no assistant message")


def _check_tools_missing(conversation: Conversation) -> None:
    if conversation.tools:
        return
    for message in conversation.messages:
        if message["role"] != "assistant":
            continue
        if TOOL_CALL in message["content"] or TOOL_CALL in message.get("reasoning_content", ""):
            if not any(TOOLS_HEADER in str(other.get("content", "")) for other in conversation.messages):
                raise RowError(
                    "tools_missing",
                    f"a message has {TOOL_CALL}, but the row has neither tools nor a `{TOOLS_HEADER}` header",
                )
            return


def _check_equals(conversation: Conversation, equals: dict[str, str]) -> None:
    for key, wanted in equals.items():
        value = conversation.meta.get(key)
        listed = value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
        if value is None or (str(value) != wanted and wanted not in map(str, listed)):
            raise RowError("equals", f"{key} is {value!r}, not {wanted!r}")


def _check_repetition(conversation: Conversation) -> None:
    for message in _answers(conversation):
        for text in _texts(message):
            words = text.split()
            if len(words) < SHORT_ANSWER:
                continue
            runs = Counter(zip(*(words[start:] for start in range(REPEATED_WORDS)), strict=False))
            run, count = runs.most_common(1)[0]
            if count > 2 and count * REPEATED_WORDS > REPEATED_SHARE * len(words):
                raise RowError("repetition", f"{' '.join(run)[:120]!r} occurs {count} times")
