"""First values of LoRA's matrices where they are made from the weight: PiSSA (Meng et al. 2024), OLoRA (Büyükakyüz 2024).

Both start from B A that is a part of the weight. The peft library takes that part out of the base; here the base stays as it
is, and the layer subtracts the part again (`Adapter.subtracted`), which computes the same.
"""

import torch

from sft_hydra.errors import ConfigError

OLORA, PISSA, ITERATIONS = "olora", "pissa", "pissa_niter_"


@torch.no_grad()
def first_factors(
    weight: torch.Tensor, kind: str, dim: int, scale: float, name: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (dim, in) and B (out, dim), fp32, for a `weight` (out, in) of the layer `name`, as in the peft library. `seed`: of the
    randomized decomposition. ConfigError if the rank is larger than the layer."""
    if dim > min(weight.shape):
        raise ConfigError(
            f"peft.init_lora_weights={kind}: {name} is {tuple(weight.shape)}, which has no part of rank {dim}; use a smaller "
            "peft.dim, or one for this layer in peft.rank_pattern"
        )
    weight = weight.float()
    if kind == OLORA:
        q, r = torch.linalg.qr(weight)
        return r[:dim], q[:, :dim]
    if kind == PISSA:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        left, values, right = left[:, :dim], values[:dim], right[:dim]
    else:
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(seed)
            left, values, columns = torch.svd_lowrank(weight, dim, niter=int(kind.removeprefix(ITERATIONS)))
        right = columns.T
    roots = (values / scale).sqrt()
    return roots[:, None] * right, left * roots
