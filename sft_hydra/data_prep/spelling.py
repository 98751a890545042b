"""Generated rows about letters: `builtin:simple_spelling` (spell a word) and `builtin:spelling_bee` (count a letter in a word,
step by step). A model sees a word as a few tokens; these rows teach the letters in it.

Invariant: row n depends only on n, so any range can be generated anywhere.
"""

import random
from collections.abc import Iterator
from typing import Any

from sft_hydra.errors import DataError

ROWS = {"simple_spelling": 200_000, "spelling_bee": 80_000}
ONSETS = [
    "b",
    "bl",
    "br",
    "c",
    "ch",
    "cl",
    "cr",
    "d",
    "dr",
    "f",
    "fl",
    "fr",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "ph",
    "pl",
    "pr",
    "qu",
    "r",
    "s",
    "sc",
    "sh",
    "sk",
    "sl",
    "sm",
    "sn",
    "sp",
    "st",
    "str",
    "t",
    "th",
    "tr",
    "v",
    "w",
    "z",
]
VOWELS = ("a", "a", "e", "e", "i", "o", "o", "u", "ai", "ea", "ee", "ie", "oa", "oo", "ou")
CODAS = (
    "",
    "",
    "",
    "b",
    "ck",
    "ct",
    "d",
    "ft",
    "g",
    "l",
    "ll",
    "m",
    "n",
    "nd",
    "ng",
    "nt",
    "p",
    "r",
    "rd",
    "rt",
    "s",
    "ss",
    "st",
    "t",
    "x",
)
ENDINGS = ("", "", "", "er", "ing", "ed", "ly", "ness", "ful", "able", "y", "ous")
SPELL = (
    "Spell the word {word}.",
    "How do you spell {word}?",
    "Please spell: {word}",
    "Write {word} letter by letter.",
    "What are the letters of {word}?",
)
COUNT = (
    "How many times does the letter {letter} occur in {word}?",
    "How many {letter} are in {word}?",
    "Count the letter {letter} in the word {word}.",
    "In {word}, how often do you see {letter}?",
    "{word}: number of {letter}?",
)


def rows(part: str, first: int, stop: int | None) -> Iterator[dict[str, Any]]:
    """Rows first..stop of `simple_spelling` or `spelling_bee`. DataError for another `part`."""
    if part not in ROWS:
        raise DataError(f"builtin:{part} does not exist; there are {', '.join(f'builtin:{name}' for name in ROWS)}")
    make = _spell if part == "simple_spelling" else _count
    for number in range(first, min(ROWS[part] if stop is None else stop, ROWS[part])):
        rng = random.Random(f"{part} {number}")
        question, answer = make(rng, _word(rng))
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_rows(count: int) -> Iterator[tuple[str, str]]:
    """Questions of `spelling_bee` with their answers, generated like the training rows but from other seeds."""
    for number in range(count):
        rng = random.Random(f"spelling_bee test {number}")
        yield _count(rng, _word(rng))


def _word(rng: random.Random) -> str:
    syllables = [
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 1, 2, 2, 3)))
    ]
    return "".join(syllables) + rng.choice(ENDINGS)


def _spell(rng: random.Random, word: str) -> tuple[str, str]:
    return rng.choice(SPELL).format(word=word), f"{word}: {', '.join(word)}"


def _count(rng: random.Random, word: str) -> tuple[str, str]:
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    seen, lines = 0, []
    for position, sign in enumerate(word, 1):
        seen += sign == letter
        lines.append(f"{position}. {sign}" + (f" ({seen})" if sign == letter else ""))
    answer = "\n".join([f"The letters of {word}, with each {letter} counted:", *lines, f"The answer is {seen}."])
    return rng.choice(COUNT).format(word=word, letter=letter), answer
