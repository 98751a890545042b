"""A grammar of hostile lines: chat rows with anything wrong anywhere, as bytes. The same seed gives the same lines."""

import json
import random
from collections.abc import Callable
from typing import Any

TEXTS = [
    *("", " ", "Hello", "4", "naïve 日本語 👩‍👩‍👧", "a\r\nb\u2028c", "\u202eabc", "x" * 300, "null", "[]", "{}"),
    *("<think>", "</think>", "<think>\nHm.\n</think>\n\nYes.", "<think></think>", "# Tools\n<tool_call>"),
    *("<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>", "<tool_call>\n{}\n</tool_call>", "<tool_response>"),
    *("{{ messages }}", "{% for m in x %}", "{%- raw %}", "{# x", "\x00", "\x1b[31m", "%s%n", "../../etc/passwd"),
]
SURROGATES = ['"\\ud800"', '"x\\udfff"', '"\\ude00\\ud83d"']
SCALARS = ["null", "true", "false", "0", "-1", "1.5", "NaN", "Infinity", "-Infinity", "1e999", "9" * 25, "9" * 5000]
ROLES = ["user", "assistant", "system", "developer", "tool", "function", "User", "", "assistant\n", "🤖"]
KEYS = ["role", "content", "tool_calls", "tools", "messages", "id", "name", "type", "function", "arguments", "text"]
CYCLE = {
    "type": "object",
    "properties": {"a": {"$ref": "#"}},
    "$defs": {"b": {"$ref": "#/$defs/b"}},
    "$ref": "#/$defs/b",
}
DEPTHS = (60, 130, 254, 300, 500, 900, 1100, 10_000)


class Grammar:
    """Endless lines of one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def line(self) -> bytes:
        """One line without its end; most are nearly right, because those get furthest."""
        kind: Callable[[], str] = self.chance.choices(
            [self.chat, self.prompt, self.sharegpt, self.alpaca, self.wild], [80, 5, 5, 4, 6]
        )[0]
        data = kind().encode("utf-8", "surrogatepass")
        return self.mutate(data) if self.chance.random() < 0.1 else data

    def chat(self) -> str:
        fields = [("messages", self.messages())]
        if self.chance.random() < 0.4:
            fields.append(("tools", self.tools()))
        return self.object(fields)

    def prompt(self) -> str:
        return self.object([("prompt", self.content()), ("completion", self.content())])

    def alpaca(self) -> str:
        return self.object([("instruction", self.content()), ("input", self.content()), ("output", self.content())])

    def sharegpt(self) -> str:
        roles = ["human", "gpt", "system", "function_call", "observation", "x"]
        turns = [
            self.object([("from", json.dumps(self.chance.choice(roles))), ("value", self.content())])
            for _ in range(self.chance.randint(0, 4))
        ]
        return self.object([("conversations", f"[{','.join(turns)}]")])

    def messages(self) -> str:
        if self.chance.random() < 0.03:
            return self.wild()
        roles = ["user", "assistant"] * self.chance.randint(1, 3)
        if self.chance.random() < 0.3:
            roles.insert(0, "system")
        if self.chance.random() < 0.2:
            roles.insert(self.chance.randint(0, len(roles)), self.chance.choice(ROLES))
        return f"[{','.join(self.message(role) for role in roles)}]"

    def message(self, role: str) -> str:
        if self.chance.random() < 0.01:
            return self.wild()
        fields = [("role", json.dumps(role)), ("content", self.content())]
        if role == "assistant" and self.chance.random() < 0.25:
            fields.append(("tool_calls", self.calls()))
        if role == "assistant" and self.chance.random() < 0.2:
            fields.append(("reasoning_content", self.content()))
        if role == "tool" or self.chance.random() < 0.03:
            fields.append(("tool_call_id", self.content()))
        return self.object(fields)

    def content(self) -> str:
        pick = self.chance.random()
        if pick < 0.95:
            parts = self.chance.choices(TEXTS, k=self.chance.randint(1, 3))
            return json.dumps("".join(parts), ensure_ascii=self.chance.random() < 0.5)
        if pick < 0.965:
            return self.chance.choice(SURROGATES)
        return self.wild()

    def calls(self) -> str:
        if self.chance.random() < 0.1:
            return self.wild()
        arguments = self.chance.choice([self.wild(), '{"place": "Oslo"}', json.dumps('{"place": "Oslo"}'), '"{broken"'])
        function = self.object([("name", self.name()), ("arguments", arguments)])
        call = function if self.chance.random() < 0.3 else self.object([("id", self.content()), ("function", function)])
        return f"[{call}]"

    def tools(self) -> str:
        pick = self.chance.random()
        if pick < 0.15:
            return self.wild()
        parameters = self.chance.choice([json.dumps(CYCLE), '{"type": "object"}', self.wild(), '{"pattern": "(a+)+$"}'])
        function = self.object([("name", self.name()), ("parameters", parameters)])
        tool = function if pick < 0.5 else self.object([("type", '"function"'), ("function", function)])
        tools = f"[{tool}]"
        return json.dumps(tools) if pick > 0.9 else tools

    def name(self) -> str:
        return '"weather"' if self.chance.random() < 0.9 else self.wild()

    def object(self, fields: list[tuple[str, str]]) -> str:
        """Sometimes with a field twice, without one, or with one that nobody expects."""
        fields = list(fields)
        if self.chance.random() < 0.06:
            fields.append((self.chance.choice([*KEYS, fields[0][0], "\x00", ""]), self.wild()))
        if self.chance.random() < 0.02:
            fields.pop(self.chance.randrange(len(fields)))
        return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in fields) + "}"

    def wild(self, depth: int = 0) -> str:
        """Any JSON value, also what only some parsers take."""
        pick = self.chance.random()
        if pick < 0.02 and depth == 0:
            return self.nested(self.chance.choice(DEPTHS))
        if pick < 0.5 or depth > 2:
            return self.chance.choice([*SCALARS, *SURROGATES, *(json.dumps(text) for text in TEXTS)])
        values = [self.wild(depth + 1) for _ in range(self.chance.randint(0, 3))]
        if pick < 0.75:
            return f"[{','.join(values)}]"
        return "{" + ",".join(f"{json.dumps(self.chance.choice(KEYS))}:{value}" for value in values) + "}"

    def nested(self, depth: int) -> str:
        opening, closing = self.chance.choice([("[", "]"), ('{"a":', "}"), ('{"properties":{"a":', "}}")])
        return opening * depth + "1" + closing * depth

    def mutate(self, data: bytes) -> bytes:
        """Bytes cut, flipped, put in or doubled; never a line break, which would make two lines."""
        at = self.chance.randrange(len(data) + 1)
        junk = bytes(
            self.chance.choice(b'\x00\xff\xfe\xc0\xed{}[]",:\\ \t\r0e-') for _ in range(self.chance.randint(1, 4))
        )
        return self.chance.choice(
            [
                lambda: data[:at],
                lambda: data[at:],
                lambda: data[:at] + junk + data[at:],
                lambda: data[:at] + junk + data[at + len(junk) :],
                lambda: data[:at] + data[max(0, at - 9) : at] + data[at:],
                lambda: b"\xef\xbb\xbf" + data,
                lambda: data + b"\r",
            ]
        )().replace(b"\n", b" ")


def write_hostile(path: Any, seed: int, count: int) -> int:
    """A file of `count` hostile lines; returns how many of them are not blank."""
    grammar = Grammar(seed)
    lines = [grammar.line() for _ in range(count)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return sum(
        bool(line.removeprefix(b"\xef\xbb\xbf" if number == 0 else b"").strip()) for number, line in enumerate(lines)
    )
