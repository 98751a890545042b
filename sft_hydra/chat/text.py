"""Small functions on rendered texts: `common_prefix`, `tag_edge` and `shortest`."""

from collections.abc import Iterable, Sequence


def common_prefix(texts: Sequence[str]) -> str:
    """The longest common prefix of the texts."""
    low, high = min(texts), max(texts)
    same, differs = 0, min(len(low), len(high)) + 1  # halved at each step: texts may have a million characters
    while differs - same > 1:
        middle = (same + differs) // 2
        if high.startswith(low[same:middle], same):
            same = middle
        else:
            differs = middle
    return low[:same]


def tag_edge(text: str) -> str:
    """`text` without an unclosed tag at its end: two texts may agree by chance on the first characters of a tag."""
    opened = text.rfind("<")
    return text[:opened] if opened > text.rfind(">") else text


def shortest(texts: Iterable[str]) -> list[str]:
    """The minimal subset of `texts`: a string that contains any of `texts` contains one of these."""
    found = sorted(set(texts), key=lambda text: (len(text), text))
    return [text for index, text in enumerate(found) if not any(other in text for other in found[:index])]
