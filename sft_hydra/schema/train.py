"""The `train` and `checkpoint` sections: length, batches, precision, memory, and what is saved and loaded."""

from dataclasses import dataclass, field
from enum import Enum

from sft_hydra.schema.ranges import MANY, STEPS, number


class Precision(Enum):
    """Compute dtype of the forward and backward pass."""

    bf16 = "bf16"
    fp32 = "fp32"


class Recompute(Enum):
    """What activation checkpointing recomputes in the backward pass."""

    none = "none"
    selective = "selective"
    full = "full"


@dataclass(kw_only=True, slots=True)
class EarlyStoppingConfig:
    """When training ends before its last step."""

    metric: str | None = None
    """Metric of validation or ChatCORE, `val/loss` for instance: training ends early once it no longer improves. Of scores
    (`eval/...`) more is better, of all else less. null: never."""
    patience: int = number(3, 1, STEPS)
    """Measurements in a row without improvement after which training ends."""
    min_delta: float = number(0.0, 0, 1e9)
    """What counts as improvement: more than this."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Length of training, batch sizes, precision and memory options."""

    train_iters: int | None = number(None, -1, STEPS)
    """Optimizer steps; -1 = one epoch. At most one of train_iters, epochs, train_samples; none: one epoch."""
    epochs: float | None = number(None, 0, 1e6, above=True)
    train_samples: int | None = number(None, 1, MANY)
    """Length of training in packed sequences."""
    global_batch_size: int | None = number(None, 1, 10_000_000)
    """Packed sequences per optimizer step; null without global_batch_tokens: 8."""
    global_batch_tokens: int | None = number(None, 1, MANY)
    """Alternative: tokens per optimizer step, a multiple of seq_length."""
    micro_batch_size: int = number(1, 1, 10_000_000)
    """Packed sequences of one forward pass on one data-parallel rank."""
    precision: Precision | None = None
    """null: bf16 on CUDA, fp32 on a CPU. Master weights and reductions are fp32 either way."""
    freeze: list[str] = field(default_factory=list)
    """Full fine-tuning: parameters that are not trained, by names of parameters or modules, wildcards allowed
    (`[embed_tokens,'model.layers.0.*']`)."""
    trainable: list[str] | None = None
    """The other way round: only these are trained, without those of `freeze`. null or []: all."""
    fp8: bool = False
    """Compute the linear layers of all blocks (except routed experts) in fp8, through torchao. For full fine-tuning in bf16 on
    H100 and later, without tensor parallelism."""
    calculate_per_token_loss: bool = True
    """True: loss sum / supervised tokens of the global batch. False: loss sum / conversations with a supervised token."""
    router_aux_loss: float = number(0.0, 0, 1_000)
    """Mixture of experts with softmax routers (Qwen3-MoE): factor of the load-balancing loss over all tokens of the
    global batch. 0 = off."""
    router_bias_update_rate: float = number(0.0, 0, 1_000)
    """Mixture of experts with sigmoid routers (Nemotron-H): change of each expert's selection bias per step, up if it got
    fewer tokens than the mean of its layer, down if more. 0 = frozen."""
    clip_grad: float | None = number(1.0, 0, 1e9)
    """Clip the gradient to this norm; null: off."""
    recompute: Recompute = Recompute.none
    """Activation checkpointing: what blocks recompute in the backward pass. `full`: everything; `selective`: everything but
    matrix products and attention."""
    neftune_alpha: float | None = number(None, 0, 1e6, above=True)
    """NEFTune: uniform noise on the embeddings in training, within alpha / sqrt(L * hidden size), where L is the length of
    each conversation by itself. The paper uses 5 to 15. null: none."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in host memory; blocks are copied to the device when needed."""
    compile: bool = False
    """torch.compile each block by itself. With `recompute=selective`, what is kept is decided in each graph: more than
    without `compile`."""
    deterministic: bool = False
    """Use deterministic algorithms on CUDA, so that a step repeats bit for bit and a resumed run equals a straight one. Slower
    backward passes of attention, and sorting instead of atomic additions; an operation without such an algorithm ends the run."""
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    ema_decay: float | None = number(None, 0, 1, below=True)
    """Keep an exponential moving average of the trained weights, which a step moves by 1 - ema_decay toward them; it costs
    4 bytes per trained weight. `export.ema` exports it. null: none."""
    log_interval: int = number(10, 1, STEPS)
    """Steps between two lines of output that is not a terminal. metrics.jsonl has every step."""
    num_threads: int | None = number(None, 1, 100_000)
    """Threads of a CPU run; null: torch's default."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written, which are kept, and which one is loaded."""

    save: str | None = None
    """Folder; null: `checkpoints/` in the run's folder."""
    load: str | None = None
    """A checkpoint of sft_hydra (its folder, or one `step_<N>`) with the initial weights. Resuming a run takes precedence. Those
    of `seq_length`, `train.global_batch_size`, `train.micro_batch_size` and the learning rates that are null are taken from it."""
    load_optimizer: bool = False
    """Also load the optimizer state from `load`; learning rates are those of the config."""
    interval: int | None = number(500, 1, STEPS)
    """Steps between checkpoints; the last step is always saved. null: only the last."""
    async_save: bool = False
    """Write checkpoints in the background, from a copy in host memory."""
    keep_last: int = number(2, 1, STEPS)
    keep_best: str | None = None
    """A metric of metrics.jsonl, `val/loss` for instance: the checkpoint with its best value is also kept. Higher is
    better for scores (`eval/...`, `chatcore...`), lower for all others."""
