"""NEFTune (Jain et al. 2023): uniform noise on the embeddings of a training step.

Noise is a function of the step's seed, the document's tokens, the position in it and the channel, by a counter-based
generator (splitmix64). So it is the same on every device and under every layout, and a resume needs no state.
"""

from dataclasses import dataclass

import torch

CHUNK = 1024  # tokens whose random bits exist at the same time
WEYL, MIX1, MIX2 = (int.from_bytes(bytes.fromhex(text), signed=True) for text in ("9e3779b97f4a7c15", "bf58476d1ce4e5b9", "94d049bb133111eb"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class EmbeddingNoise:
    """For each token of a micro-batch its random key, (T,) int64, and the largest noise, (T,) fp32."""

    keys: torch.Tensor
    sizes: torch.Tensor

    def added(self, embedded: torch.Tensor) -> torch.Tensor:
        """`embedded` (T, hidden) with the noise."""
        noise = torch.empty(embedded.shape, dtype=torch.float32, device=embedded.device)
        channels = torch.arange(1, embedded.shape[1] + 1, device=embedded.device) * WEYL
        for part, keys in zip(noise.split(CHUNK), self.keys.split(CHUNK), strict=True):
            bits = mixed(keys[:, None] + channels)
            part.copy_(shifted(bits, 40)).mul_(2.0**-23).sub_(1.0)  # 24 bits -> [-1, 1)
        return (embedded + noise * self.sizes[:, None]).to(embedded.dtype)


def mixed(bits: torch.Tensor) -> torch.Tensor:
    """The output function of splitmix64 (Steele et al. 2014) on int64."""
    bits = (bits ^ shifted(bits, 30)) * MIX1
    bits = (bits ^ shifted(bits, 27)) * MIX2
    return bits ^ shifted(bits, 31)


def shifted(bits: torch.Tensor, count: int) -> torch.Tensor:
    """int64 shifted right, zeros from the left."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def noise_of(
    input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, hidden: int, alpha: float, seed: int
) -> EmbeddingNoise:
    """Noise for T whole tokens, uniform within alpha / sqrt(L * hidden), where L is the length of the token's own document.

    `input_ids` and `position_ids` (T,), `cu_seqlens` (documents + 1,).
    """
    lengths = cu_seqlens.diff().long()
    contents = mixed(input_ids * WEYL + mixed(position_ids + 1))
    documents = torch.arange(len(lengths)).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=torch.int64).index_add_(0, documents, contents)
    of_document = mixed(sums + torch.tensor(seed) * WEYL)
    keys = mixed(of_document[documents] + position_ids * MIX1)
    return EmbeddingNoise(keys, alpha / (lengths[documents].float() * hidden).sqrt())
