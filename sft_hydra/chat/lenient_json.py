"""Lenient JSON parsing for data sets: long integers and lone surrogates are kept, NaN is marked (NoNumber)."""

import json
import math
from typing import Any

DIGITS_AS_ZEROS = bytes(ord("0" if chr(byte) in "0123456789" else " ") for byte in range(256))
LONG_NUMBER = b"0" * 19


class NoNumber(float):
    """NaN or infinity, which JSON does not allow. A row with one in a field that is used is rejected."""


def parse_leniently(text: str | bytes) -> Any:
    """Parse JSON with the standard library, which keeps long integers and lone surrogates; NaN and numbers too large for a
    float become NoNumber. Raises ValueError or RecursionError."""
    return json.loads(text, parse_constant=NoNumber, parse_float=_finite)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else NoNumber(value)


def has_long_number(text: bytes) -> bool:
    """Whether a JSON text may contain a number of more than 64 bits, which orjson does not keep. Twelve times faster than a
    regular expression."""
    return LONG_NUMBER in text.translate(DIGITS_AS_ZEROS)
