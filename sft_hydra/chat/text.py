"""Small functions on rendered texts: `common_prefix` and `tag_edge`."""

from collections.abc import Sequence


def common_prefix(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    low, high = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]


def tag_edge(text: str) -> str:
    """`text` without a tag that it opens and does not close: two texts may agree by chance on how a tag begins."""
    opened = text.rfind("<")
    return text[:opened] if opened > text.rfind(">") else text
