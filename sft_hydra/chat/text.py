"""Small functions on rendered texts: `common_prefix`, `tag_edge` and `shortest`."""

from collections.abc import Iterable, Sequence


def common_prefix(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    low, high = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]


def tag_edge(text: str) -> str:
    """`text` without a tag that it opens and does not close: two texts may agree by chance on how a tag begins."""
    opened = text.rfind("<")
    return text[:opened] if opened > text.rfind(">") else text


def shortest(texts: Iterable[str]) -> list[str]:
    """Those of `texts` that hold none of the others: a text that holds any of `texts` holds one of these."""
    found = sorted(set(texts), key=lambda text: (len(text), text))
    return [text for index, text in enumerate(found) if not any(other in text for other in found[:index])]
