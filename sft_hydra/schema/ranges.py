"""Valid ranges of numeric config fields, stored in the fields' `metadata`, and the check of a config against them.

Infinity and NaN are outside every range.
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
COUNT = 2**31 - 1  # of 32-bit counts


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`, inclusive; `above` excludes `low`, `below` excludes `high`."""

    low: float
    high: float
    above: bool = False  # without `low` itself
    below: bool = False  # without `high` itself

    def holds(self, value: float) -> bool:
        """Whether the value is inside."""
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def describe(self) -> str:
        """The range in words, for messages."""
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
    """Set a field to its default, so that the rules can still check the other keys."""
    (declared,) = (one for one in dataclasses.fields(section) if one.name == name)
    factory = declared.default_factory
    setattr(section, name, declared.default if factory is dataclasses.MISSING else factory())


def _show(value: float) -> str:
    text = f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
