"""What the demo's conversations are about: invented words, first names, pairs of numbers.

Invariant: the two sides of `divide` share no item, so whatever the phrasing no question is both learned and asked.
"""

import random
from dataclasses import dataclass

CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
# fmt: off
NAMES = [
    "Adam", "Anna", "Bella", "Ben", "Carl", "Clara", "David", "Diana", "Emma", "Eric", "Felix", "Fiona",
    "George", "Grace", "Hanna", "Henry", "Iris", "Ivan", "Jack", "Julia", "Karl", "Kate", "Laura", "Leo", "Max",
    "Mia", "Nina", "Noah", "Olga", "Oscar", "Paul", "Petra", "Quinn", "Ralf", "Rosa", "Sam", "Sara", "Theo",
    "Tina", "Tom", "Uma", "Ursula", "Vera", "Victor", "Walter", "Wendy", "Xavier", "Yara", "Zoe", "Zora",
]
# fmt: on
NUMBERS, FACTORS = range(10, 100), range(2, 10)


@dataclass(frozen=True, slots=True)
class Items:
    """One side of the division. Pairs of numbers are divided by a rule, words and names by lists."""

    words: tuple[str, ...]
    names: tuple[str, ...]
    heldout: bool

    def word(self, rng: random.Random, longest: int = 5) -> str:
        while len(word := rng.choice(self.words)) > longest:
            pass
        return word

    def name(self, rng: random.Random) -> str:
        return rng.choice(self.names)

    def pair(self, rng: random.Random, second: range = NUMBERS) -> tuple[int, int]:
        while is_heldout_pair(pair := (rng.choice(NUMBERS), rng.choice(second))) != self.heldout:
            pass
        return pair


def is_heldout_pair(pair: tuple[int, int]) -> bool:
    """One pair in twelve, spread over all numbers, the same for both orders."""
    return pair[0] * pair[1] % 11 == 1


def divide(seed: int) -> tuple[Items, Items]:
    """The items of training and the held-out ones."""
    rng = random.Random(f"items {seed}")
    words = sorted({_invent(rng) for _ in range(6000)})
    names = list(NAMES)
    rng.shuffle(words)
    rng.shuffle(names)
    training = Items(tuple(words[400:2400]), tuple(names[12:]), heldout=False)
    return training, Items(tuple(words[:400]), tuple(names[:12]), heldout=True)


def _invent(rng: random.Random) -> str:
    """Three to five letters, consonants and vowels in turn. No letter twice: one look-back finds the place."""
    consonants, vowels = rng.sample(CONSONANTS, 3), rng.sample(VOWELS, 3)
    first, second = (consonants, vowels) if rng.random() < 0.7 else (vowels, consonants)
    letters = [letter for both in zip(first, second, strict=True) for letter in both]
    return "".join(letters[: rng.randint(3, 5)])
