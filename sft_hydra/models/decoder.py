"""`DecoderModel`, the model interface used by engine and checkpoint, and `FamilyModel`, its implementation for our
families: embedding, blocks, norm, lm_head. Packed tokens are one dimension, T.

A block is a module with forward(hidden (T, D), Packed) -> (T, D). Families differ only in their blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sft_hydra.kernels.loss import linear_cross_entropy, softcapped
from sft_hydra.models.embedding_noise import EmbeddingNoise
from sft_hydra.models.generation_cache import GenerationCache
from sft_hydra.models.layers import Linear, Packed, RMSNorm
from sft_hydra.models.moe_aux_loss import BalancingLoss
from sft_hydra.models.quantized_weight import QuantizedWeight
from sft_hydra.models.rotary import rotary_tables
from sft_hydra.models.state_dict_map import ignorable
from sft_hydra.models.token_rows import TokenRows, replaced_rows
from sft_hydra.parallel.dtensor import full_tensor
from sft_hydra.parallel.mesh import SINGLE

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
Losses = tuple[torch.Tensor, torch.Tensor]
Reader = Callable[[torch.Tensor], torch.Tensor]


class DecoderModel(nn.Module, ABC):
    """A causal language model on packed sequences. Logits are `hidden @ head_weight.T`, soft-capped if `logit_cap` is set.

    `config` is the transformers config that it was built from; `lora_targets` are the default target modules of LoRA.
    """

    def __init__(self, config: Any, lora_targets: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.lora_targets = lora_targets
        self.logit_cap: float | None = None
        self.embedding_name, self.head_name = EMBEDDING, HEAD  # parameter names; the same if they are tied
        self.rounds_to: torch.dtype | None = (
            None  # dtype of hidden states, and so of all matrix products; None: the dtype of the weights
        )
        self.keeps_weight_copies = False  # over the micro-batches of a step; see models/weight_copies.py
        self.prefix = ""  # that names of all but the head may lack on disk
        self.adapter_scales: dict[str, float] = {}  # of each layer that has an adapter
        self.quantized: dict[str, QuantizedWeight] = {}  # weights of which only bytes are kept, by parameter name
        self.trained_whole: frozenset[str] = frozenset()  # parameters of the base that are trained beside adapters
        self.token_ids: tuple[
            int, ...
        ] = ()  # tokens of which the rows in embedding and head are trained beside adapters
        self.head_rows: tuple[
            TokenRows, ...
        ] = ()  # these rows of the head; in a tuple, so that they are not registered as sub-modules
        self.noise: EmbeddingNoise | None = None  # on the embeddings of the next forward pass
        self.balances: list[BalancingLoss] = []  # of routers whose experts are to be used evenly
        self.mesh = SINGLE  # the layout's, once there is one
        self.cache: GenerationCache | None = None  # while texts are continued
        self.reader: Reader | None = None  # what `forward` returns of hidden states in place of themselves
        self.pipeline: Any = None  # models/pipeline_stages.py, if the blocks are spread over several stages

    @property
    @abstractmethod
    def head_weight(self) -> torch.Tensor:
        """Weight of the lm_head (vocab, hidden); the embedding if the two are tied."""

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The layers in order: units of activation checkpointing and FSDP."""

    @property
    def device(self) -> torch.device:
        """The device of computation; with `train.cpu_offload` weights are in host memory between steps."""
        return self.mesh.device or next(self.parameters()).device

    @property
    def roots(self) -> list[nn.Module]:
        """The modules whose forward is called: the model, or its pipeline stages."""
        return [self] if self.pipeline is None else [*self.pipeline.stages]

    def is_copy(self, name: str) -> bool:
        """Whether this rank's parameter is a copy of one on another pipeline stage: the embedding as a tied head."""
        return name.startswith(self.embedding_name.removesuffix("weight")) and self.mesh.pp.rank > 0

    def used_head(self, weight: torch.Tensor) -> torch.Tensor:
        """The head that logits are computed with, from `weight`, which is `head_weight`; differentiable."""
        for rows in self.head_rows:
            weight = rows.in_weight(weight)
        return weight

    @property
    def tied_head(self) -> str | None:
        """The name that a head has on disk which is the embedding; None: the head is a matrix of its own."""
        return HEAD if self.config.tie_word_embeddings else None

    def ignores(self, name: str) -> bool:
        """Whether a tensor of this name on disk has no parameter in the model and may be skipped."""
        return ignorable(self.config, name)

    def compute_buffers(self) -> None:
        """Compute the buffers that are neither loaded nor randomly initialized; called after memory is allocated."""

    @abstractmethod
    def hidden_states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Hidden states (T, hidden_size) after the final norm: `forward` without targets."""

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        targets: torch.Tensor | None = None,
        trained: torch.Tensor | None = None,
    ) -> torch.Tensor | Losses:
        """Hidden states (T, hidden_size) after the final norm, or the result of `reader` on them; with `targets` (T,) the
        losses, see `losses`.

        `input_ids` (T,); `position_ids` (T,), from 0 in every document; `cu_seqlens` (documents + 1,) int32, the document
        boundaries. With several ranks: ids and targets of the local tokens, positions of the tensor-parallel group's
        tokens, document boundaries of the full sequence.
        """
        hidden = self.hidden_states(input_ids, position_ids, cu_seqlens, max_seqlen)
        return self._result(hidden, targets, trained)

    def _result(
        self, hidden: torch.Tensor, targets: torch.Tensor | None, trained: torch.Tensor | None
    ) -> torch.Tensor | Losses:
        if targets is not None:
            return self.losses(hidden, targets, trained)
        return hidden if self.reader is None else self.reader(hidden)

    def observe_batch(self, batch: Any, *, repeated: bool = False) -> None:
        """Set how many tokens of the next pass over a micro-batch the balanced routers count: all but padding; 0 if it is
        `repeated` (recomputed)."""
        for balance in self.balances:
            balance.real = 0 if repeated else batch.num_real(self.mesh)

    def rounded(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` in the compute dtype."""
        return hidden if self.rounds_to is None else hidden.to(self.rounds_to)

    def used_full_head(self) -> torch.Tensor:
        """`used_head`, unsharded, between steps. A collective: all ranks with a shard must call it."""
        weight = full_tensor(self.head_weight)
        for rows in self.head_rows:
            weight = replaced_rows(weight, rows.ids, full_tensor(rows.trainable_tokens_delta))
        return weight

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor, trained: torch.Tensor | None) -> Losses:
        """The loss summed over supervised tokens (scalar, with gradient) and the loss of each token (T,) (without gradient).

        `hidden` (T, D), `targets` (T,), `trained` (N,) the indices of the supervised tokens, computed if None.
        """
        return linear_cross_entropy(
            self.rounded(hidden), self.used_head(self.head_weight), targets, trained=trained, cap=self.logit_cap
        )

    def logits(self, hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Logits (T, vocab) from `hidden` (T, D) and the full `head` (vocab, D)."""
        return softcapped(hidden @ head.to(hidden).T, self.logit_cap)


class Trunk(nn.Module):
    """Everything but the lm_head; parameters are named as in Hugging Face's base models."""

    def __init__(self, vocab_size: int, hidden_size: int, blocks: list[nn.Module], norm_eps: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleDict({str(i): block for i, block in enumerate(blocks)})
        self.norm = RMSNorm(hidden_size, norm_eps)


class FamilyModel(DecoderModel):
    """A model built from the layers of this package."""

    def __init__(
        self,
        config: Any,
        blocks: list[nn.Module],
        *,
        norm_eps: float,
        rotary: bool,
        lora_targets: tuple[str, ...],
    ) -> None:
        super().__init__(config, lora_targets)
        self.rotary = rotary
        self.model = Trunk(config.vocab_size, config.hidden_size, blocks, norm_eps)
        tied = config.tie_word_embeddings
        self.head_name = EMBEDDING if tied else HEAD
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> torch.Tensor:
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers.values())

    def hidden_states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        packed = self.packed(position_ids, cu_seqlens, max_seqlen)
        hidden = self.embed(input_ids)
        for block in self.model.layers.values():
            hidden = block(hidden, packed)
        return self.model.norm(hidden)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (T, hidden_size) before the first block, in the compute dtype."""
        hidden = self.model.embed_tokens(input_ids)
        return self.rounded(hidden if self.noise is None else self.noise.added(hidden))

    def packed(self, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int) -> Packed:
        """Document boundaries and rotary tables, shared by all blocks."""
        rotary = rotary_tables(self.config, position_ids) if self.rotary else None
        documents = torch.arange(len(cu_seqlens) - 1, dtype=torch.int32, device=cu_seqlens.device)
        tokens = len(position_ids) * self.mesh.cp.size
        seq_idx = documents.repeat_interleave(cu_seqlens.diff(), output_size=tokens)
        return Packed(cu_seqlens, max_seqlen, seq_idx, rotary, self.cache)

    def finish(
        self, hidden: torch.Tensor, targets: torch.Tensor | None, trained: torch.Tensor | None = None
    ) -> torch.Tensor | Losses:
        """After the last block: what `forward` returns."""
        return self._result(self.model.norm(hidden), targets, trained)
