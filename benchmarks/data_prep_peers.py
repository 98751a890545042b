"""Other libraries' preparation of the same rows, in rows per second of one core: `peers(file, tokenizer_folder, seq_length)`.

TRL: `SFTTrainer._prepare_dataset` with packing, loss on whole conversations, because the templates that are compared do not mark
generations. axolotl: `ChatTemplateStrategy.tokenize_prompt`, without packing. A library that is not installed, or that fails
on the rows, is named with the reason. Neither looks at what a template leaves out, or at control-token text in contents.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROWS = 200  # at most


def peers(file: Path, tokenizer: Path, seq_length: int) -> dict[str, Any]:
    """Rows per second of each library, or why there are none."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:ROWS]]
    found: dict[str, Any] = {}
    for name, prepare in (("trl", _trl), ("axolotl", _axolotl)):
        try:
            work = prepare([_as_objects(row) for row in rows], tokenizer, seq_length)
            before = time.process_time()
            work()
            found[name] = round(len(rows) / (time.process_time() - before))
        except Exception as problem:  # continue without a library that fails
            found[name] = f"{type(problem).__name__}: {str(problem)[:200]}"
    return found


def _trl(rows: list[dict[str, Any]], tokenizer: Path, seq_length: int) -> Callable[[], Any]:
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    backend = AutoTokenizer.from_pretrained(str(tokenizer))
    args = SFTConfig(output_dir="unused", max_length=seq_length, packing=True, use_cpu=True, bf16=False, report_to=[])
    trainer: Any = SimpleNamespace(_tokenizer=backend, _is_vlm=False, chat_template=None, completion_only_loss=False)
    data = Dataset.from_list(rows)
    return lambda: SFTTrainer._prepare_dataset(trainer, data, backend, args, True, None, "train")


def _axolotl(rows: list[dict[str, Any]], tokenizer: Path, seq_length: int) -> Callable[[], Any]:
    from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy
    from transformers import AutoTokenizer

    backend = AutoTokenizer.from_pretrained(str(tokenizer))
    prompter = ChatTemplatePrompter(backend, backend.chat_template, max_length=seq_length, field_messages="messages")
    strategy = ChatTemplateStrategy(
        prompter, backend, train_on_inputs=False, sequence_len=seq_length, roles_to_train=["assistant"]
    )
    return lambda: [strategy.tokenize_prompt(row) for row in rows]


def _as_objects(row: dict[str, Any]) -> dict[str, Any]:
    """A row as these libraries take it: messages and tools alone, arguments of calls as objects."""
    messages = []
    for message in row["messages"]:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message.get("tool_calls") or ()
        ]
        messages.append({**message, "tool_calls": calls} if calls else message)
    return {"messages": messages, **({"tools": row["tools"]} if row.get("tools") else {})}
