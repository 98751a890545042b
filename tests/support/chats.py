"""Chat rows, files and configs for tests of data preparation, and the oracle: what serving renders before each turn."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft_hydra.chat.render import Renderer
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.records import Conversation, Message
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import SourceConfig
from sft_hydra.schema.model import ModelConfig

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def call(text: str = "", *, id: str = "call_1", name: str = "weather", **arguments: Any) -> Message:
    function = {"name": name, "arguments": arguments or {"place": "Oslo"}}
    return {"role": "assistant", "content": text, "tool_calls": [{"id": id, "type": "function", "function": function}]}


def result(text: str, id: str = "call_1") -> Message:
    return {"role": "tool", "content": text, "tool_call_id": id}


def question(number: int) -> dict[str, Any]:
    """A row of one question and answer, different for every number."""
    return {"messages": [user(f"What is {number} plus {number}?"), assistant(f"It is {2 * number}, my friend.")]}


def shapes() -> dict[str, dict[str, Any]]:
    """One row of every normal shape."""
    reasoned = assistant("It is 4.", reasoning_content="Two and two.")
    return {
        "single": {"messages": [user("Hi"), assistant("Hello there")]},
        "system": {"messages": [system("Be kind."), user("Hi"), assistant("Hello")]},
        "multi": {"messages": [user("a?"), assistant("A."), user("b?"), assistant("B."), user("c?"), assistant("C.")]},
        "unicode": {"messages": [user("¿Qué?"), assistant("日本語 👩‍👩‍👧 naïve"), user("x"), assistant("мир")]},
        "reasoning": {"messages": [user("2+2?"), reasoned]},
        "reasoning_multi": {
            "messages": [user("2+2?"), reasoned, user("Sure?"), assistant("Yes.", reasoning_content="Check again.")]
        },
        "tools": {
            "messages": [user("Rain?"), call(), result("sun everywhere"), assistant("No rain.")],
            "tools": [TOOL],
        },
        "tools_multi": {
            "messages": [
                *(user("Rain?"), call("Let me see."), result("sun everywhere"), assistant("No.")),
                *(user("And Rome?"), call(id="call_2", place="Rome"), result("rain", "call_2"), assistant("Yes.")),
            ],
            "tools": [TOOL],
        },
        "tools_reasoning": {
            "messages": [
                user("Rain?"),
                {**call(), "reasoning_content": "I must look."},
                result("sun everywhere"),
                assistant("No rain.", reasoning_content="It is sunny."),
            ],
            "tools": [TOOL],
        },
    }


def conversation(row: dict[str, Any]) -> Conversation:
    return to_conversation(row, SourceConfig(), "test", "test:1")


def served_prompts(renderer: Renderer, talk: Conversation) -> set[str]:
    """What serving may have rendered before any assistant turn of a conversation, in both thinking modes."""
    prompts = set()
    for index, message in enumerate(talk.messages):
        if message["role"] == "assistant":
            for thinking in (False, True):
                prompts.add(renderer.prompt_text(talk.messages[:index], talk.tools, thinking) if index else "")
    return prompts


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def data_cfg(folder: Path, **sources: Path | str | SourceConfig) -> SftConfig:
    """A config that prepares these sources with the bundled tokenizer, in this process."""
    cfg = SftConfig(output_dir=str(folder), seq_length=256, model=ModelConfig(name="test"))
    cfg.data.num_workers = 1
    for name, source in sources.items():
        cfg.data.sources[name] = source if isinstance(source, SourceConfig) else SourceConfig(path=str(source))
    return cfg


def sequences(packed: PackedSet, split: str = "train") -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All sequences of a split as (ids, mask before the roll), sorted."""
    found = []
    for index in range(packed.num_rows(split)):
        row = packed.row(split, index)
        ends = [*row.seq_start_id.tolist()[1:], len(row.input_ids)]
        for start, end in zip(row.seq_start_id.tolist(), ends, strict=True):
            mask = [0, *row.loss_mask[start : end - 1].tolist()]
            found.append((tuple(row.input_ids[start:end].tolist()), tuple(mask)))
    return sorted(found)


def all_sequences(packed: PackedSet) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return sorted(sequence for split in ("train", "valid", "test") for sequence in sequences(packed, split))


def rejects(packed: PackedSet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (packed.folder / "rejects.jsonl").read_bytes().splitlines()]
