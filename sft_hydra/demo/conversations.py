"""The bundled conversations: `rows("train")`, `rows("drill")`, `rows("heldout")`, made here, the same every time.

Invariant: no held-out question occurs in training in any phrasing, because the two sides share no item (items.py).
"""

import random
from collections.abc import Iterator

from sft_hydra.demo.items import Items, divide
from sft_hydra.demo.tasks import TASKS, Row, repeat
from sft_hydra.errors import DataError

TRAIN_ROWS = 6000
DRILL_ROWS = 1500
DRILL_EVERY = 20  # one drill among so many training rows: what was learned stays
TASK_EVERY = 4  # one task among so many drills: the tasks' words are met early
HELDOUT_PER_TASK = 40


def rows(part: str, seed: int = 0) -> Iterator[Row]:
    """Conversations of one part as {"messages", "task"} and, where a tool may be called, "tools"."""
    parts = {"train": _train, "drill": _drill, "heldout": _heldout}
    if part not in parts:
        raise DataError(f"demo:{part} does not exist; the bundled parts are {', '.join(parts)}")
    training, heldout = divide(seed)
    return parts[part](random.Random(f"{part} {seed}"), heldout if part == "heldout" else training)


def _train(rng: random.Random, items: Items) -> Iterator[Row]:
    for i in range(TRAIN_ROWS):
        yield repeat(rng, items) if i % DRILL_EVERY == 0 else _task(i, rng, items)


def _drill(rng: random.Random, items: Items) -> Iterator[Row]:
    for i in range(DRILL_ROWS):
        yield _task(i // TASK_EVERY, rng, items) if i % TASK_EVERY == 0 else repeat(rng, items)


def _heldout(rng: random.Random, items: Items) -> Iterator[Row]:
    """The same number of every task, each question once."""
    for i in range(len(TASKS)):
        questions: set[str] = set()
        while len(questions) < HELDOUT_PER_TASK:
            row = _task(i, rng, items)
            question = "\n".join(m["content"] for m in row["messages"] if m["role"] == "user")
            if question not in questions:
                questions.add(question)
                yield row


def _task(i: int, rng: random.Random, items: Items) -> Row:
    """A conversation of the i-th task, counted around."""
    name = list(TASKS)[i % len(TASKS)]
    return {**TASKS[name](rng, items), "task": name}
