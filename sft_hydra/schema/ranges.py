"""Which numbers a field takes: a range beside each numeric field of the schema, and the values of a config that are outside.

A range is part of the field (`metadata`), so that whoever adds a number says what it may be. Infinity and NaN are in none.
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SHOWN = 40  # characters of a value in a message

RANGE = "range"
MANY = 10**12  # of tokens or rows: more than any data set has
STEPS = 10**9
COUNT = 2**31 - 1  # of what is counted in 32 bits somewhere


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`, both included unless `above` or `below` says otherwise."""

    low: float
    high: float
    above: bool = False  # without `low` itself
    below: bool = False  # without `high` itself

    def holds(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def describe(self) -> str:
        low = f"above {self.low:g}" if self.above else "0 or more" if self.low == 0 else f"at least {self.low:g}"
        high = f"{int(self.high):,}" if self.high == int(self.high) else f"{self.high:g}"
        return f"{low} and {'below' if self.below else 'at most'} {high}"


def number(default: Any, low: float, high: float, *, above: bool = False, below: bool = False) -> Any:
    """A field of the schema with its range; of a list or mapping, the range of each item."""
    metadata = {RANGE: Range(low, high, above, below)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


def is_numeric(declared: Any) -> bool:
    """Whether a declared type holds numbers: int, float, one of them or null, a list or mapping of them."""
    return declared in (int, float) or any(is_numeric(part) for part in typing.get_args(declared))


def outside(section: Any, prefix: str = "") -> Iterator[tuple[Any, str, str]]:
    """(section, field, problem) of every number of a config, and of the sections in it, that is outside its range."""
    for declared in dataclasses.fields(section):
        value, key = getattr(section, declared.name), f"{prefix}{declared.name}"
        if dataclasses.is_dataclass(value):
            yield from outside(value, f"{key}.")
        elif isinstance(value, dict):
            for name, child in value.items():
                if dataclasses.is_dataclass(child):
                    yield from outside(child, f"{key}.{name}.")
        if RANGE not in declared.metadata or value is None:
            continue
        allowed: Range = declared.metadata[RANGE]
        values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        numbers = (one for one in values if not isinstance(one, str))  # a word that stands for a number
        for wrong in (one for one in numbers if not allowed.holds(one)):
            yield section, declared.name, f"{key}={_show(wrong)} must be {allowed.describe()}"


def put_in_range(section: Any, name: str) -> None:
    """Set a field to its usual value, so that the rules can still be asked about everything else."""
    (declared,) = (one for one in dataclasses.fields(section) if one.name == name)
    factory = declared.default_factory
    setattr(section, name, declared.default if factory is dataclasses.MISSING else factory())


def _show(value: float) -> str:
    text = f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
