"""What may be said about the optimizer and its schedule. `kind` names the variant in a resolved.yaml."""

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Optimizer:
    kind: str = "adamw"
    lr: float = 1.0e-5
    """Peak rate (with muon: of everything that is not a hidden matrix)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1.0e-8
    weight_decay: float = 0.0
    """On matrices; vectors (norms, biases) and embeddings are never decayed."""
    init_lr_frac: float = 1.0
    """Scales every rate at once."""


@dataclass(kw_only=True, slots=True)
class AdamW(Optimizer):
    kind: str = "adamw"
    state_bits: int = 32
    """Of each moment: 32, or 8 through torchao for matrices that every token meets (not embeddings, routed experts and
    vectors), which takes a quarter of their memory. `checkpoint.load_optimizer` takes over either."""


@dataclass(kw_only=True, slots=True)
class Muon(Optimizer):
    """Muon for hidden matrices, each expert's too; AdamW for embeddings, head and vectors. Computes in fp32 with
    `train.precision=fp32` (the default on a CPU), else in bf16 where the device is fast at it."""

    kind: str = "muon"
    matrix_lr: float = 0.02
    embedding_lr: float | None = None
    """null: `lr`."""
    unembedding_lr: float | None = None
    """null: `lr`. Tied embeddings use `embedding_lr`."""
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "muon": Muon}


@dataclass(kw_only=True, slots=True)
class Scheduler:
    """Warm-up is given once, in steps, rows or as a ratio of training; so is the decay, which ends with training."""

    kind: str = "cosine"
    """`cosine` (to the minimum over all of training), `warmdown` and `wsd` (constant, then down over the last part:
    linear, and 1-sqrt), `constant`."""
    warmup_iters: int | None = None
    warmup_samples: int | None = None
    warmup_ratio: float | None = None
    decay_iters: int | None = None
    decay_samples: int | None = None
    decay_ratio: float | None = None
    min_lr: float | None = None
    """Smallest rate, absolute (of the peak rate `optimizer.lr`; other rates keep the proportion)."""
    min_lr_frac: float | None = None
    """Smallest rate as a fraction of the peak. At most one of the two; none: 0."""
