"""How rows of every message format are rendered by a folder of chat templates, compared with transformers:

    python benchmarks/templates.py TEMPLATE_FOLDER TOKENIZER_FOLDER [--random 100] [--seed 0] [--write docs/templates.md]

Each `*.jinja` replaces the template of the tokenizer, which gets the control tokens that it names. A row of each shape is rendered as data
preparation does. Its verdict: `exact` if before every trained span stands what `apply_chat_template` renders for the
messages before that turn, with generation prompt and mode, and the span holds the turn as the template prints it and closes;
`reported` if the row was rejected with a reason or counted as having only its header masked; `WRONG` else. `printable` are the
shapes that the template can print at all, judged from renders of transformers alone (template_abilities.py). `--random` judges so
many random rows instead of the twelve shapes, with what the renderer learned from those before. `--write` puts the table between the
marks of a page.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from template_abilities import prints, texts
from template_rows import SHAPES, TOOL, WITH_TOOLS, use_random_shapes

from sft_hydra.chat.message_format import format_messages
from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.errors import DataError, RowError
from sft_hydra.schema.data import SourceConfig

CLOSED = re.compile(
    r"(</[^<>]*think[^<>]*>|\[/THINK\]|<channel\|>|<\|[^<>]*end_?(of_)?think[^<>]*\|>)\s*\Z", re.IGNORECASE
)
OPENED = re.compile(r"(<(?![^<>]*end)[^<>/]*think[^<>/]*>|\[THINK\])\s*\Z", re.IGNORECASE)
MARKS = ("<!-- templates -->", "<!-- /templates -->")
SPECIALS = (  # a text in a template, and the bos and eos tokens of its family
    ("<|begin_of_text|>", "<|begin_of_text|>", "<|eot_id|>"),
    ("<start_of_turn>", "<bos>", "<eos>"),
    ("<｜", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ("<|im_end|>", "", "<|im_end|>"),
    ("", "<s>", "</s>"),
)


class Judge:
    """One template, in our renderer and in transformers."""

    def __init__(self, template: str, tokenizer: Path, theirs: Any) -> None:
        self.variables, self.render = _variables(template), _renders(template, theirs)
        ours = ChatTokenizer(tokenizer, template)
        ours.special_tokens = {**ours.special_tokens, **self.variables}
        if "bos_token" not in self.variables:
            ours.special_tokens.pop("bos_token", None)
        self.renderer = Renderer.of(ours)

    def verdict(self, shape: str) -> tuple[str, str]:
        """`exact`, `reported` or `WRONG`, and why."""
        messages, tools = _row(shape)
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
                    if index is not None and (why := self._unlike(talk, index, before, chunk)):
                        return "WRONG", why
                    if index is None:
                        return "WRONG", f"no prompt of a server ends {before[-40:]!r}"
                    learned[index] += 1
                    own = list(texts(messages[index]))
                    if any(text not in chunk for text in own):
                        return "WRONG", f"a text of the turn is not in {chunk[:60]!r}"
                    if not chunk[max(chunk.rindex(text) + len(text) for text in own) :].strip():
                        return "WRONG", f"no end: {chunk[-40:]!r}"
                    others = [text for i, m in enumerate(messages) if i != index for text in texts(m)]
                    if any(text in chunk for text in others if text not in own):
                        return "WRONG", f"another message in {chunk[:60]!r}"
                before += chunk
        wanted = Counter(_answers(messages))
        return ("exact", "") if learned == wanted else ("WRONG", f"turns trained: {dict(learned)}")

    def _unlike(self, talk: Any, index: int, before: str, chunk: str) -> str:
        """How a trained text, up to its end, differs from what transformers renders for the turn; empty if it does not."""
        thought = talk.messages[index].get("reasoning_content")
        opened, closed = OPENED.search(before), CLOSED.search(before)
        if thought and closed:
            return f"reasoning after a prompt that closes it, {before[-40:]!r}"
        if thought and opened and chunk.lstrip().startswith(opened[1]):
            return f"reasoning is opened twice, {before[-40:]!r} and {chunk[:40]!r}"
        if closed and chunk.lstrip().startswith(closed[1]):
            return f"reasoning is closed twice, {before[-40:]!r} and {chunk[:40]!r}"
        composed = bool(thought and opened and self.renderer.traits.opens_reasoning)
        if composed:
            chunk = chunk.partition(thought)[2].strip()  # the template prints no reasoning
            if chunk.count("</think>") > 1:
                return f"reasoning is closed twice, {chunk[:60]!r}"
            chunk = chunk.removeprefix("</think>")
        words = [text for text in texts(talk.messages[index]) if text in chunk]
        body = chunk[: max((chunk.rindex(text) + len(text) for text in words), default=0)].strip()
        for text in self._served(talk, index + 1, prompt=False):
            if text.startswith(before) and text[len(before) :].lstrip().startswith(body):
                return ""
            if body in text and (composed or not (text.startswith(before) or (opened and not thought))):
                return ""
        return f"the template prints another text than {chunk[:60]!r}"

    def _served(self, talk: Any, index: int, prompt: bool = True) -> set[str]:
        """What transformers renders before a turn, in the turn's mode; with `prompt` false, without generation prompt."""
        turn = index if prompt else index - 1
        thinking = "reasoning_content" in talk.messages[turn]
        shaped = format_messages(talk.messages[:index], self.renderer.traits)
        both = (self.render(messages, talk.tools, thinking, prompt) for messages in (talk.messages[:index], shaped))
        return {text for text in both if text is not None}


def _answers(messages: list[dict[str, Any]]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    if arguments.random:
        use_random_shapes(arguments.random, arguments.seed)
    from transformers.utils.chat_template_utils import render_jinja_template

    lines = ["| template | exact | printable | reported | reason |", "|---|---|---|---|---|"]
    totals: Counter[str] = Counter()
    for path in sorted(arguments.templates.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        printable = {shape for shape in SHAPES if prints(_renders(template, render_jinja_template), *_row(shape))}
        try:
            judge = Judge(template, arguments.tokenizer, render_jinja_template)
        except DataError as problem:
            verdicts = dict.fromkeys(SHAPES, ("reported", str(problem)))
        else:
            verdicts = {shape: judge.verdict(shape) for shape in SHAPES}
        counts = Counter(verdict for verdict, _ in verdicts.values())
        totals.update(counts)
        totals["printable"] += len(printable)
        totals["printable and exact"] += sum(verdicts[shape][0] == "exact" for shape in printable)
        for shape, (verdict, why) in verdicts.items():
            if verdict == "WRONG" or (shape in printable and verdict != "exact"):
                print(f"{verdict} {path.stem}, {shape}: {why}")
        reasons = Counter(why for verdict, why in verdicts.values() if verdict == "reported")
        why = "; ".join(f"{_cell(reason)} ({count})" for reason, count in reasons.most_common())
        lines.append(f"| {path.stem} | {counts['exact']} | {len(printable)} | {counts['reported']} | {why} |")
    table = "\n".join(["", _summary(totals), "", *lines])
    print(table)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        pattern = f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}"
        new = re.sub(pattern, lambda _: f"{MARKS[0]}\n{table}\n{MARKS[1]}", page, flags=re.DOTALL)
        arguments.write.write_text(new, encoding="utf-8")


def _row(shape: str) -> tuple[list[dict[str, Any]], list[Any] | None]:
    return SHAPES[shape], [TOOL] if shape in WITH_TOOLS else None


def _variables(template: str) -> dict[str, str]:
    _, bos, eos = next(entry for entry in SPECIALS if entry[0] in template)
    return {key: text for key, text in (("bos_token", bos), ("eos_token", eos)) if text}


def _renders(template: str, theirs: Any) -> Callable[..., str | None]:
    """`(messages, tools, thinking, prompt) -> text` of transformers; None where the template raises an error."""

    def render(messages: list[Any], tools: list[Any] | None, thinking: bool, prompt: bool) -> str | None:
        modes = {"enable_thinking": thinking, "thinking": thinking}
        switches = {**modes, "chat_template_kwargs": modes, "add_generation_prompt": prompt}
        try:
            texts, _ = theirs(
                conversations=[messages], tools=tools, chat_template=template, **switches, **_variables(template)
            )
        except Exception:  # a template raises what its expressions raise
            return None if thinking else render(messages, tools, True, prompt)  # thinking may not be disabled
        return str(texts[0])

    return render


def _summary(totals: Counter[str]) -> str:
    """Both shares: of all shapes, and of those that the template can print."""
    rows = totals["exact"] + totals["reported"] + totals["WRONG"]
    exact, printable, both = totals["exact"], totals["printable"], totals["printable and exact"]
    return (
        f"Of {rows:,} rows {exact:,} are exact ({exact / rows:.1%}), {totals['reported']:,} reported and {totals['WRONG']} wrong. "
        f"The templates can print {printable:,} of them; of these {both:,} are exact ({both / max(printable, 1):.1%})."
    )


def _cell(text: str) -> str:
    return text.removeprefix("template_drops: ").replace("|", "\\|").replace("\n", " ")[:100]


if __name__ == "__main__":
    main()
