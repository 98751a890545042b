"""Whether texts can be encoded in pieces: `is_byte_level`, `borders_are_exact`, `pieces_are_exact`.

Invariant: a text is split only where the pieces have the same ids as the whole text: at control tokens, and after the line
end of a generation prompt.
"""

from collections.abc import Iterable

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence

LEFT = ("a", "a ", "word\n", "é.")
RIGHT = ("b", " b", "\nb", "  b", "1", "日", "Word", ".")
TRIED = 48  # added tokens


def is_byte_level(tokenizer: ChatTokenizer) -> bool:
    """True if the tokenizer is byte-level and its added tokens do not strip or require neighbouring characters: then a text
    can be split at control tokens."""
    spec = tokenizer.spec
    rules = spec.get("pre_tokenizer") or {}
    parts = rules.get("pretokenizers", [rules])
    plain = all(
        part.get("type") in ("Split", "ByteLevel", "Digits") and not part.get("add_prefix_space") for part in parts
    )
    normalizer = (spec.get("normalizer") or {}).get("type")
    tokens = spec.get("added_tokens", ())
    odd = any(token.get(flag) for token in tokens for flag in ("lstrip", "rstrip", "single_word"))
    return plain and any(part.get("type") == "ByteLevel" for part in parts) and normalizer in (None, "NFC") and not odd


def borders_are_exact(tokenizer: ChatTokenizer) -> bool:
    """True if texts can be split before and after the added tokens that neither strip neighbouring spaces nor are normalized.
    Tests up to TRIED of them between the texts LEFT and RIGHT."""
    tokens = [token for token in tokenizer.added if token.text.strip()]
    tokens = [*tokens[: TRIED // 2], *tokens[TRIED // 2 :][-TRIED // 2 :]]
    for token in tokens:
        for left in LEFT:
            for right in RIGHT:
                whole = tokenizer.encode(left + token.text + right)
                before, after = not (token.lstrip or token.normalized), not (token.rstrip or token.normalized)
                if before and tokenizer.encode(left) + tokenizer.encode(token.text + right) != whole:
                    return False
                if after and tokenizer.encode(left + token.text) + tokenizer.encode(right) != whole:
                    return False
    return True


def pieces_are_exact(
    tokenizer: ChatTokenizer, sequences: Iterable[RenderedSequence], pieces: Iterable[list[int]]
) -> bool:
    """True if `pieces`, the ids of each sequence encoded in pieces, equal those of its whole text."""
    return all(tokenizer.encode(s.text) == ids for s, ids in zip(sequences, pieces, strict=True))
