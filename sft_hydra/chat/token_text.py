"""Text of tokens: `TokenText` returns their bytes, identifies control tokens, and finds turns by their headers.

Roles are recognized from the headers of common templates (`<|im_start|>user`, `<|user|>`, `[INST]`, ...) and are used only for
display. With other templates no roles are found.
"""

import re

import numpy as np
from numpy.typing import NDArray

from sft_hydra.chat.tokenizer import ChatTokenizer

ROLES = ("system", "user", "assistant", "tool")
WRITTEN = {
    **{role: role for role in ROLES},
    **{"developer": "system", "human": "user", "inst": "user", "/inst": "assistant", "model": "assistant"},
    **{"gpt": "assistant", "ipython": "tool", "function": "tool", "environment": "tool", "observation": "tool"},
}
HEADER_TOKENS = 6  # maximum number of tokens of a role's name


class TokenText:
    """Bytes, kinds and roles of the tokens of one tokenizer; results are cached."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.backend = tokenizer.backend
        self.added = tokenizer.added_tokens
        self.byte_level = "ByteLevel" in str(self.backend.decoder)
        self._bytes: dict[int, bytes] = {}
        self._roles: dict[tuple[int, ...], int] = {}

    def bytes_of(self, token: int) -> bytes:
        """UTF-8 of one token, which may start or end inside a character."""
        if token not in self._bytes:
            self._bytes[token] = self._read(token)
        return self._bytes[token]

    def is_control(self, token: int) -> bool:
        """Whether this is an added token."""
        return token in self.added

    def is_space(self, token: int) -> bool:
        """Whether the token is white space only."""
        return not self.bytes_of(token).strip()

    def turns(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """(positions of the control tokens that open a turn, their roles as indices into ROLES), for `ids` (tokens,)."""
        starts, roles = [], []
        for position in np.flatnonzero(np.isin(ids, list(self.added))).tolist():
            header = tuple(ids[position : position + 1 + HEADER_TOKENS].tolist())
            if header not in self._roles:
                self._roles[header] = self._role(header)
            if self._roles[header] >= 0:
                starts.append(position)
                roles.append(self._roles[header])
        return np.array(starts, np.int64), np.array(roles, np.uint8)

    def _role(self, header: tuple[int, ...]) -> int:
        own = self.bytes_of(header[0]).decode(errors="replace")
        name = b""
        for token in header[1:]:
            if token in self.added:
                break
            name += self.bytes_of(token)
        line = name.decode(errors="replace").partition("\n")[0]
        role = WRITTEN.get(line.strip().lower()) or WRITTEN.get(re.sub(r"[<>|\[\]｜_\s]", "", own).lower())
        return ROLES.index(role) if role else -1

    def _read(self, token: int) -> bytes:
        if token in self.added:
            return self.added[token][0].encode()
        piece = self.backend.id_to_token(token)
        if piece is None:
            return f"<{token}?>".encode()  # not in this tokenizer: the shards were made with another one
        if self.byte_level:
            return bytes(BYTE_OF[sign] for sign in piece if sign in BYTE_OF)
        if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte in byte-level BPE (as in GPT-2): printable bytes map to themselves, others to code points from 256."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
