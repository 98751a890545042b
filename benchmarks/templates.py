"""How rows of every message format are rendered by a folder of chat templates, compared with transformers:

    python benchmarks/templates.py TEMPLATE_FOLDER TOKENIZER_FOLDER [--write docs/templates.md]

Each `*.jinja` replaces the template of the tokenizer, which gets the control tokens that it names. A row of each shape is rendered as data
preparation does. Its verdict: `exact` if before every trained span stands what `apply_chat_template` renders for the
messages before that turn, with generation prompt and mode, and the span holds the turn and closes; `reported` if the row was
rejected with a reason or counted as having only its header masked; `WRONG` else. `--write` puts the table between the marks
of a page.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_hydra.chat.message_format import format_messages
from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.errors import DataError, RowError
from sft_hydra.schema.data import SourceConfig

MARKS = ("<!-- templates -->", "<!-- /templates -->")
SPECIALS = (  # a text in a template, and the bos and eos tokens of its family
    ("<|begin_of_text|>", "<|begin_of_text|>", "<|eot_id|>"),
    ("<start_of_turn>", "<bos>", "<eos>"),
    ("<｜", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<|im_end|>", "", "<|im_end|>"),
    ("", "<s>", "</s>"),
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_wind",
        "description": "Wind of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "Name of it"}},
            "required": ["town"],
        },
    },
}


def user(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"Question{number}, please?"}


def answer(number: int, thought: bool = False) -> dict[str, Any]:
    more = {"reasoning_content": f"Thought{number} about it"} if thought else {}
    return {"role": "assistant", "content": f"Answer{number} is this.", **more}


def call(*numbers: int, content: str = "", thought: bool = False) -> dict[str, Any]:
    calls = [
        {"id": f"callabcd{n}", "type": "function", "function": {"name": "get_wind", "arguments": {"town": f"Town{n}"}}}
        for n in numbers
    ]
    more = {"reasoning_content": f"Thought{numbers[0]} of calling"} if thought else {}
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def result(number: int) -> dict[str, Any]:
    return {"role": "tool", "content": f"Result{number} calm", "tool_call_id": f"callabcd{number}", "name": "get_wind"}


SYSTEM = {"role": "system", "content": "Rule0 to follow."}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "plain": [user(1), answer(1)],
    "system": [SYSTEM, user(1), answer(1)],
    "turns": [SYSTEM, user(1), answer(1), user(2), answer(2)],
    "developer": [{**SYSTEM, "role": "developer"}, user(1), answer(1)],
    "tools": [SYSTEM, user(1), answer(1)],
    "call": [user(1), call(1), result(1), answer(1)],
    "call, text": [user(1), call(1, content="Beside1 it."), result(1), answer(1)],
    "parallel": [user(1), call(1, 2), result(1), result(2), answer(1)],
    "steps": [SYSTEM, user(1), call(1), result(1), call(2), result(2), answer(1), user(2), answer(2)],
    "reasoning": [user(1), answer(1, True), user(2), answer(2, True)],
    "reasoning, call": [user(1), call(1, thought=True), result(1), answer(2, True)],
    "mixed": [user(1), call(1, thought=True), result(1), answer(2)],
}
WITH_TOOLS = {"tools", "call", "call, text", "parallel", "steps", "reasoning, call", "mixed"}


class Judge:
    """One template, in our renderer and in transformers."""

    def __init__(self, template: str, tokenizer: Path, theirs: Any) -> None:
        _, bos, eos = next(entry for entry in SPECIALS if entry[0] in template)
        self.variables = {key: text for key, text in (("bos_token", bos), ("eos_token", eos)) if text}
        self.template, self.theirs = template, theirs
        ours = ChatTokenizer(tokenizer, template)
        ours.special_tokens = {**ours.special_tokens, **self.variables}
        if not bos:
            ours.special_tokens.pop("bos_token", None)
        self.renderer = Renderer.of(ours)

    def verdict(self, shape: str) -> tuple[str, str]:
        """`exact`, `reported` or `WRONG`, and why."""
        messages, tools = SHAPES[shape], [TOOL] if shape in WITH_TOOLS else None
        talk = to_conversation({"messages": messages, "tools": tools}, SourceConfig(), shape, shape)
        try:
            sequences = self.renderer.sequences(talk)
        except RowError as problem:
            return "reported", f"{problem.reason}: {problem.detail}"
        if any(sequence.bare_headers for sequence in sequences):
            return "reported", "only the header is masked"
        if any(sequence.open_ends for sequence in sequences):
            return "reported", "nothing ends a turn"
        learned: Counter[int] = Counter()
        for sequence in sequences:
            before = ""
            for chunk, flag in zip(sequence.chunks, sequence.trained, strict=True):
                if flag:
                    index = next((i for i in _answers(messages) if before in self._served(talk, i)), None)
                    if index is None:
                        return "WRONG", f"no prompt of a server ends {before[-40:]!r}"
                    learned[index] += 1
                    texts = list(_texts(messages[index]))
                    if any(text not in chunk for text in texts):
                        return "WRONG", f"a text of the turn is not in {chunk[:60]!r}"
                    if not chunk[max(chunk.rindex(text) + len(text) for text in texts) :].strip():
                        return "WRONG", f"no end: {chunk[-40:]!r}"
                    others = [text for i, m in enumerate(messages) if i != index for text in _texts(m)]
                    if any(text in chunk for text in others if text not in texts):
                        return "WRONG", f"another message in {chunk[:60]!r}"
                before += chunk
        wanted = Counter(_answers(messages))
        return ("exact", "") if learned == wanted else ("WRONG", f"turns trained: {dict(learned)}")

    def _served(self, talk: Any, index: int) -> set[str]:
        """What transformers renders before a turn, in the turn's mode."""
        thinking = "reasoning_content" in talk.messages[index]
        shaped = format_messages(talk.messages[:index], self.renderer.traits)
        found = set()
        for messages in (talk.messages[:index], shaped):
            try:
                texts, _ = self.theirs(
                    conversations=[messages],
                    tools=talk.tools,
                    chat_template=self.template,
                    add_generation_prompt=True,
                    enable_thinking=thinking,
                    thinking=thinking,
                    **self.variables,
                )
            except Exception:  # a template raises what its expressions raise
                continue
            found.add(texts[0])
        return found


def _answers(messages: list[dict[str, Any]]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _texts(message: dict[str, Any]) -> Iterator[str]:
    yield from (message[key] for key in ("reasoning_content", "content") if message.get(key))
    for made in message.get("tool_calls", ()):
        yield made["function"]["arguments"]["town"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    from transformers.utils.chat_template_utils import render_jinja_template

    lines = ["| template | exact | reported | reason |", "|---|---|---|---|"]
    totals: Counter[str] = Counter()
    for path in sorted(arguments.templates.glob("*.jinja")):
        try:
            judge = Judge(path.read_text(encoding="utf-8"), arguments.tokenizer, render_jinja_template)
        except DataError as problem:
            lines.append(f"| {path.stem} | 0 | all | {_cell(str(problem))} |")
            totals["refused"] += 1
            continue
        verdicts = {shape: judge.verdict(shape) for shape in SHAPES}
        counts = Counter(verdict for verdict, _ in verdicts.values())
        totals.update(counts)
        for shape, (verdict, why) in verdicts.items():
            if verdict == "WRONG":
                print(f"WRONG {path.stem}, {shape}: {why}")
        reasons = Counter(why for verdict, why in verdicts.values() if verdict == "reported")
        why = "; ".join(f"{_cell(reason)} ({count})" for reason, count in reasons.most_common())
        lines.append(f"| {path.stem} | {counts['exact']} | {counts['reported']} | {why} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(dict(totals))
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        pattern = f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}"
        new = re.sub(pattern, lambda _: f"{MARKS[0]}\n{table}\n{MARKS[1]}", page, flags=re.DOTALL)
        arguments.write.write_text(new, encoding="utf-8")


def _cell(text: str) -> str:
    return text.removeprefix("template_drops: ").replace("|", "\\|").replace("\n", " ")[:100]


if __name__ == "__main__":
    main()
