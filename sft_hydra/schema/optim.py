"""What may be said about the optimizer and its schedule. `kind` names the variant in a resolved.yaml."""

from dataclasses import dataclass

from sft_hydra.schema.ranges import MANY, STEPS, number


@dataclass(kw_only=True, slots=True)
class Optimizer:
    kind: str = "adamw"
    lr: float = number(1.0e-5, 0, 1_000)
    """Peak rate (with muon: of everything that is not a hidden matrix)."""
    betas: list[float] = number([0.9, 0.95], 0, 1, below=True)
    eps: float = number(1.0e-8, 0, 1, above=True)
    weight_decay: float = number(0.0, 0, 1_000)
    """On matrices; vectors (norms, biases) and embeddings are never decayed."""
    init_lr_frac: float = number(1.0, 0, 1_000, above=True)
    """Scales every rate at once."""


@dataclass(kw_only=True, slots=True)
class AdamW(Optimizer):
    kind: str = "adamw"
    state_bits: int = number(32, 1, 64)
    """Of each moment: 32, or 8 through torchao for matrices that every token meets (not embeddings, routed experts and
    vectors), which takes a quarter of their memory. `checkpoint.load_optimizer` takes over either."""
    lora_plus_ratio: float | None = number(None, 0, 1e6, above=True)
    """LoRA+: rate of B matrices, and of DoRA's magnitudes, as a multiple of `lr`, which is that of A. null: the same rate."""


@dataclass(kw_only=True, slots=True)
class Muon(Optimizer):
    """Muon for hidden matrices, each expert's too; AdamW for embeddings, head and vectors. Computes in fp32 with
    `train.precision=fp32` (the default on a CPU), else in bf16 where the device is fast at it."""

    kind: str = "muon"
    matrix_lr: float = number(0.02, 0, 1_000)
    embedding_lr: float | None = number(None, 0, 1_000)
    """null: `lr`."""
    unembedding_lr: float | None = number(None, 0, 1_000)
    """null: `lr`. Tied embeddings use `embedding_lr`."""
    momentum: float = number(0.95, 0, 1, below=True)
    nesterov: bool = True
    ns_steps: int = number(5, 1, 100)


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "muon": Muon}


@dataclass(kw_only=True, slots=True)
class Scheduler:
    """Warm-up is given once, in steps, rows or as a ratio of training; so is the decay, which ends with training."""

    kind: str = "cosine"
    """`cosine` (to the minimum over all of training), `warmdown` and `wsd` (constant, then down over the last part:
    linear, and 1-sqrt), `constant`."""
    warmup_iters: int | None = number(None, 0, STEPS)
    warmup_samples: int | None = number(None, 0, MANY)
    warmup_ratio: float | None = number(None, 0, 1)
    decay_iters: int | None = number(None, 0, STEPS)
    decay_samples: int | None = number(None, 0, MANY)
    decay_ratio: float | None = number(None, 0, 1)
    min_lr: float | None = number(None, 0, 1_000)
    """Smallest rate, absolute (of the peak rate `optimizer.lr`; other rates keep the proportion)."""
    min_lr_frac: float | None = number(None, 0, 1)
    """Smallest rate as a fraction of the peak. At most one of the two; none: 0."""
