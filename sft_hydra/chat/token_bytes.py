"""Number of UTF-8 bytes of each token, to convert a loss in nats per token to bits per byte."""

import numpy as np
from numpy.typing import NDArray

from sft_hydra.chat.token_text import TokenText
from sft_hydra.chat.tokenizer import ChatTokenizer


def token_bytes(tokenizer: ChatTokenizer, vocab_size: int) -> NDArray[np.int64]:
    """(vocab_size,) bytes of each id; 0 for special tokens and for ids that the tokenizer lacks."""
    words, sizes = TokenText(tokenizer), np.zeros(vocab_size, np.int64)
    special = {token.id for token in tokenizer.added if token.special}
    for token in range(min(tokenizer.vocab_size, vocab_size)):
        if token not in special and tokenizer.backend.id_to_token(token) is not None:
            sizes[token] = len(words.bytes_of(token))
    return sizes
