"""Sections of the config about the optimizer and the learning-rate schedule. `kind` identifies the variant in a
resolved.yaml."""

from dataclasses import dataclass

from sft_hydra.schema.ranges import MANY, STEPS, number


@dataclass(kw_only=True, slots=True)
class Optimizer:
    """Settings that all optimizers share."""

    kind: str = "adamw"
    lr: float = number(1.0e-5, 0, 1_000)
    """Peak learning rate (with muon: of all parameters but hidden matrices)."""
    betas: list[float] = number([0.9, 0.95], 0, 1, below=True)
    eps: float = number(1.0e-8, 0, 1, above=True)
    weight_decay: float = number(0.0, 0, 1_000)
    """Of matrices; vectors (norms, biases) and embeddings have none."""
    init_lr_frac: float = number(1.0, 0, 1_000, above=True)
    """Factor on all learning rates."""


@dataclass(kw_only=True, slots=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019)."""

    kind: str = "adamw"
    state_bits: int = number(32, 1, 64)
    """Bits of each optimizer-state value: 32, or 8 through torchao for matrices that every token uses (not embeddings, routed
    experts and vectors), with a quarter of the memory. `checkpoint.load_optimizer` converts between them."""
    lora_plus_ratio: float | None = number(None, 0, 1e6, above=True)
    """LoRA+: learning rate of B matrices, and of DoRA's magnitudes, as a multiple of `lr`, which is that of A. null: the same
    learning rate."""


@dataclass(kw_only=True, slots=True)
class Muon(Optimizer):
    """Muon for hidden matrices, each expert's too; AdamW for embeddings, head and vectors. Computes in fp32 with
    `train.precision=fp32` (the default on a CPU), else in bf16 if the device has fast bf16 products."""

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
    """Warm-up and decay are each set by one key: in steps, in packed sequences, or as a ratio of training. The decay ends with
    training."""

    kind: str = "cosine"
    """`cosine` (to the minimum over all of training), `warmdown` and `wsd` (constant, then decay in the last phase:
    linear, and 1-sqrt), `constant`."""
    warmup_iters: int | None = number(None, 0, STEPS)
    warmup_samples: int | None = number(None, 0, MANY)
    warmup_ratio: float | None = number(None, 0, 1)
    decay_iters: int | None = number(None, 0, STEPS)
    decay_samples: int | None = number(None, 0, MANY)
    decay_ratio: float | None = number(None, 0, 1)
    min_lr: float | None = number(None, 0, 1_000)
    """Minimum learning rate for the peak `optimizer.lr`; other learning rates keep the same ratio."""
    min_lr_frac: float | None = number(None, 0, 1)
    """Minimum learning rate as a fraction of the peak. At most one of the two; neither: 0."""
