"""Base classes by which a layer declares which of its weights are split over ranks, and which stay in fp32."""

from typing import Literal

from torch import nn

from sft_hydra.parallel.mesh import SINGLE, Mesh
from sft_hydra.planning.lora_targets import adapter_part


class ShardedModule(nn.Module):
    """A layer whose heads, channels or experts may be split over ranks (column- and row-parallel as in Megatron-LM,
    Shoeybi et al. 2019).

    Input and output are the local tokens; inside, the layer may gather or exchange tokens over `mesh`. `columns` and `rows`
    name sub-modules or parameters; everything else is replicated, as are the biases of `rows`. A layer without columns is
    not split under any layout.
    """

    columns: tuple[str, ...] = ()  # split by outputs, heads or experts: the first dimension
    rows: tuple[str, ...] = ()  # split by inputs, the second dimension: their products are summed over ranks
    over: Literal["tp", "ep"] = "tp"
    opaque: tuple[str, ...] = ()  # methods excluded from torch.compile: their sizes depend on documents, tokens, chunks
    mesh: Mesh = SINGLE

    def join(self, mesh: Mesh) -> None:
        """Set the mesh; called once, before the weights are split."""
        self.mesh = mesh

    def split_dim(self, parameter: str) -> int | None:
        """The dimension in which a parameter (dotted name) is split; None if it is replicated."""
        child, leaf = adapter_part(parameter) or parameter.rpartition(".")[::2]
        names = {parameter, child}
        if names & set(self.columns):
            return None if leaf.startswith("lora_A") and self.over == "tp" else 0
        if names & set(self.rows):
            return 1 if leaf in ("weight", "lora_A", "lora_A_start") else None
        return None


class KeepFp32(nn.Module):
    """A layer whose parameters are used in fp32 under every `train.precision`."""
