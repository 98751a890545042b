"""What a layer tells the layout: which of its weights are split over ranks, and which are never rounded."""

from typing import Literal

from torch import nn

from sft_hydra.parallel.mesh import SINGLE, Mesh


class ShardedModule(nn.Module):
    """A layer that may hold a share of its heads, channels or experts on each rank.

    It takes this rank's tokens and gives this rank's tokens back; in between it may gather or exchange them over `mesh`.
    Names in `columns` and `rows` are those of sub-modules or parameters; what is under neither is whole on every rank, as
    are the biases of rows. Without columns, a mixer keeps to its own tokens whatever the layout.
    """

    columns: tuple[str, ...] = ()  # split by outputs, heads or experts: the first dimension
    rows: tuple[str, ...] = ()  # split by inputs, the second dimension: their products are summed over ranks
    over: Literal["tp", "ep"] = "tp"
    opaque: tuple[str, ...] = ()  # methods that torch.compile must not look into: they count documents, tokens, chunks
    mesh: Mesh = SINGLE

    def join(self, mesh: Mesh) -> None:
        """Take part in a layout; called once, before the weights are split."""
        self.mesh = mesh

    def split_dim(self, parameter: str) -> int | None:
        """The dimension in which a parameter, by its dotted name, is split; None: it is whole on every rank."""
        child, _, leaf = parameter.rpartition(".")
        names = {parameter, child}
        if names & set(self.columns):
            return None if leaf == "lora_A" and self.over == "tp" else 0
        if names & set(self.rows):
            return 1 if leaf in ("weight", "lora_A") else None
        return None


class KeepFp32(nn.Module):
    """A layer whose parameters are used in fp32 whatever the precision of the rest."""
