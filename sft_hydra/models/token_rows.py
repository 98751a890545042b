"""Rows of an embedding and head that are trained while the table is frozen: those of new tokens, as the peft library's
trainable tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sft_hydra.parallel.dtensor import local_tensor


class TokenRows(nn.Module):
    """Rows (ids, hidden) that replace those of a frozen table, fp32."""

    def __init__(self, ids: tuple[int, ...], weight: torch.Tensor) -> None:
        super().__init__()
        self.ids = ids
        shape = (len(ids), weight.shape[1])
        self.trainable_tokens_delta = nn.Parameter(torch.empty(shape, dtype=torch.float32, device=weight.device))

    def in_outputs(self, input_ids: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """`embedded` (T, hidden) of `input_ids` (T,), with these rows where they belong."""
        own, order = torch.tensor(self.ids, device=input_ids.device).sort()
        place = torch.searchsorted(own, input_ids).clamp_max(len(own) - 1)
        rows = F.embedding(order[place], local_tensor(self.trainable_tokens_delta).to(embedded.dtype))
        return torch.where((own[place] == input_ids)[..., None], rows, embedded)

    def in_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """A copy of the table `weight` (vocab, hidden) with these rows; differentiable."""
        return replaced_rows(weight, self.ids, local_tensor(self.trainable_tokens_delta))


class TokenEmbedding(nn.Embedding):
    """An embedding of which some rows are trained."""

    def __init__(self, base: nn.Embedding, ids: tuple[int, ...]) -> None:
        with torch.device("meta"):
            super().__init__(base.num_embeddings, base.embedding_dim, padding_idx=base.padding_idx)
        self.weight = base.weight
        self.token_adapter = TokenRows(ids, base.weight)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.token_adapter.in_outputs(input_ids, super().forward(input_ids))


def replaced_rows(weight: torch.Tensor, ids: tuple[int, ...], rows: torch.Tensor) -> torch.Tensor:
    """A copy of `weight` (vocab, hidden) with `rows` (ids, hidden) at `ids`."""
    return weight.index_copy(0, torch.tensor(ids, device=weight.device), rows.to(weight))
