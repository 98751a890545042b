"""The model that all families are: embedding, blocks, norm, head. Tokens lie packed in one dimension, T.

A block is a module with forward(hidden (T, D), Packed) -> (T, D). Families differ in their blocks only.
"""

from typing import Any

import torch
from torch import nn

from sft_hydra.kernels.loss import linear_cross_entropy
from sft_hydra.models.layers import Linear, Packed, RMSNorm
from sft_hydra.models.rotary import rotary_tables


class Trunk(nn.Module):
    """Everything but the head; parameters are named as in Hugging Face's base models."""

    def __init__(self, vocab_size: int, hidden_size: int, blocks: list[nn.Module], norm_eps: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleDict({str(i): block for i, block in enumerate(blocks)})
        self.norm = RMSNorm(hidden_size, norm_eps)


class DecoderModel(nn.Module):
    """`config` is the transformers config that it was built from; `lora_targets` the linear layers LoRA acts on unless
    told otherwise."""

    def __init__(
        self,
        config: Any,
        blocks: list[nn.Module],
        *,
        norm_eps: float,
        rotary: bool,
        lora_targets: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.config = config
        self.rotary = rotary
        self.lora_targets = lora_targets
        self.model = Trunk(config.vocab_size, config.hidden_size, blocks, norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> torch.Tensor:
        """(vocab, hidden); the embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Hidden states (T, hidden_size) after the final norm.

        `input_ids` and `position_ids` (T,), positions from 0 in every document; `cu_seqlens` (documents + 1,) int32.
        """
        rotary = rotary_tables(self.config, position_ids) if self.rotary else None
        packed = Packed(cu_seqlens, max_seqlen, rotary)
        hidden = self.model.embed_tokens(input_ids)
        for block in self.model.layers.values():
            hidden = block(hidden, packed)
        return self.model.norm(hidden)

    def loss(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        targets: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the losses of all trained tokens (with gradient), and the loss of each token (T,) (without)."""
        hidden = self(input_ids, position_ids, cu_seqlens, max_seqlen)
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return linear_cross_entropy(hidden, self.head_weight, targets)
