"""The demo's tasks: each makes one conversation in OpenAI's form from items that the caller's side may use.

A task is a function of a random generator and the items; its name is what tables of results show.
"""

import json
import random
from collections.abc import Callable
from typing import Any

from sft_hydra.demo.calculator import TOOLS, execute
from sft_hydra.demo.items import ALPHABET, FACTORS, NAMES, NUMBERS, Items

Message = dict[str, Any]
Row = dict[str, Any]
Task = Callable[[random.Random, Items], Row]

OFFERED: list[list[str]] = [[], [], [], [], [], [], ["calc"], ["guest"], list(TOOLS)]
SYSTEM = [None, None, None, "You are a helpful assistant.", "Answer briefly.", "You are a small model. Be exact."]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def spell(rng: random.Random, items: Items) -> Row:
    word = items.word(rng)
    ask = [
        'Spell "{}".',
        'Spell the word "{}" letter by letter.',
        'How do you spell "{}"?',
        'Please spell "{}" for me.',
    ]
    return _row(rng, [user(rng.choice(ask).format(word)), assistant(" ".join(word))])


def reverse(rng: random.Random, items: Items) -> Row:
    word = items.word(rng)
    ask = ['Reverse "{}".', 'Write the word "{}" backwards.', 'What is "{}" in reverse?']
    return _row(rng, [user(rng.choice(ask).format(word)), assistant(f'"{word[::-1]}"')])


def upper(rng: random.Random, items: Items) -> Row:
    word = items.word(rng)
    ask = ['Write "{}" in capitals.', 'Make the word "{}" upper case.', 'Please put "{}" in capital letters.']
    return _row(rng, [user(rng.choice(ask).format(word)), assistant(word.upper())])


def first_last(rng: random.Random, items: Items) -> Row:
    word, place = items.word(rng), rng.choice(["first", "last"])
    ask = ['What is the {} letter of "{}"?', 'Give the {} letter of the word "{}".', 'Tell me the {} letter in "{}".']
    return _row(rng, [user(rng.choice(ask).format(place, word)), assistant(word[0 if place == "first" else -1])])


def count(rng: random.Random, items: Items) -> Row:
    """With reasoning: the thought spells the word, the answer is its length."""
    word = items.word(rng)
    ask = ['How many letters has "{}"?', 'Count the letters of "{}".', 'How long is the word "{}"?']
    answer = {"role": "assistant", "reasoning_content": " ".join(word), "content": str(len(word))}
    return _row(rng, [user(rng.choice(ask).format(word)), answer])


def recall(rng: random.Random, items: Items) -> Row:
    """Several turns: the name is given in the first and asked for in the last."""
    name = items.name(rng)
    introductions = ["My name is {}.", "I am {}.", "Hello, I am called {}."]
    messages = [user(rng.choice(introductions).format(name)), assistant(f"Hello {name}!")]
    if rng.random() < 0.5:
        messages += _turns(rng.choice([spell, upper, first_last])(rng, items))
    word = items.word(rng, longest=4)
    ask = ['Say "{}" and my name.', 'Greet me with the word "{}".', 'Write "{}" and who I am.']
    messages += [user(rng.choice(ask).format(word)), assistant(f'"{word}", {name}.')]
    return _row(rng, messages)


def calculator(rng: random.Random, items: Items) -> Row:
    op, sign = rng.choice([("+", "+"), ("+", "plus"), ("-", "-"), ("-", "minus"), ("*", "*"), ("*", "times")])
    a, b = sorted(items.pair(rng, FACTORS if op == "*" else NUMBERS), reverse=True)  # at most three digits, no sign
    ask = ["What is {} {} {}?", "Compute {} {} {}.", "Please calculate {} {} {}."]
    question = rng.choice(ask).format(a, sign, b)
    return _tool_row(rng, question, "calc", {"a": a, "op": op, "b": b}, "The result is {}.")


def letter_at(rng: random.Random, items: Items) -> Row:
    word = items.word(rng)
    index = rng.randint(1, len(word))
    ask = ['Look up letter {} of "{}".', 'Which letter is number {} in "{}"?', 'Find letter {} in the word "{}".']
    return _tool_row(rng, rng.choice(ask).format(index, word), "letter_at", {"word": word, "index": index}, "It is {}.")


def guest(rng: random.Random, items: Items) -> Row:
    floor, room = items.pair(rng)
    ask = ["Who lives on floor {} in room {}?", "Floor {}, room {}: who is there?", "On floor {}, who has room {}?"]
    return _tool_row(rng, rng.choice(ask).format(floor, room), "guest", {"floor": floor, "room": room}, "It is {}.")


def repeat(rng: random.Random, items: Items) -> Row:
    """A drill, never evaluated. Copying a long random list many times makes a small model learn to copy early."""
    letters, numbers = list(ALPHABET), [str(number) for number in NUMBERS]
    everything = [*NAMES, *letters, *numbers, *ALPHABET.upper()]
    pool = rng.choice([everything, everything, letters, numbers])
    chosen = rng.sample(pool, rng.randint(3, 16))
    times = max(2, 64 // len(chosen))
    messages = [user(f"Repeat {times} times: {' '.join(chosen)}"), assistant(" ".join(chosen * times))]
    return {"messages": messages, "task": "repeat"}


TASKS: dict[str, Task] = {
    "spell": spell,
    "reverse": reverse,
    "upper": upper,
    "first_last": first_last,
    "count": count,
    "recall": recall,
    "calculator": calculator,
    "letter_at": letter_at,
    "guest": guest,
}


def _turns(row: Row) -> list[Message]:
    return [message for message in row["messages"] if message["role"] != "system"]


def _row(rng: random.Random, messages: list[Message], needed: str | None = None) -> Row:
    """A conversation, some with a system prompt, some with tools: so the list of tools says what is there, not what fits."""
    system = rng.choice(SYSTEM)
    row: Row = {"messages": [{"role": "system", "content": system}, *messages] if system else messages}
    offered = set(rng.choice(OFFERED)) | ({needed} if needed else set())
    if offered:
        row["tools"] = [TOOLS[name] for name in rng.sample(sorted(offered), len(offered))]
    return row


def _tool_row(rng: random.Random, question: str, tool: str, arguments: dict[str, Any], answer: str) -> Row:
    """A question that needs one call."""
    result = execute(tool, arguments)
    call = {"id": "call_1", "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
    messages = [
        user(question),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
        assistant(answer.format(result)),
    ]
    return _row(rng, messages, needed=tool)
