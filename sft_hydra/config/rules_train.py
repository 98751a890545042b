"""Rules about training: length, batch, optimizer, schedule, and which parameters are trained."""

from collections.abc import Iterator

from sft_hydra.errors import ConfigError, ModelError
from sft_hydra.planning.architecture import common_names, read_architecture
from sft_hydra.planning.estimate.trained import frozen_parameters
from sft_hydra.schema.config import Device, SftConfig
from sft_hydra.schema.optim import AdamW, Muon
from sft_hydra.schema.train import Precision


def length_of_training(cfg: SftConfig) -> Iterator[str]:
    """At most one of train_iters, epochs and train_samples is set."""
    yield from _at_most_one(cfg, "train", ("train_iters", "epochs", "train_samples"))


def batch_size(cfg: SftConfig) -> Iterator[str]:
    """At most one of global_batch_size and global_batch_tokens is set; the latter is a multiple of `seq_length`."""
    train = cfg.train
    yield from _at_most_one(cfg, "train", ("global_batch_size", "global_batch_tokens"))
    tokens = train.global_batch_tokens
    if tokens is not None and tokens % cfg.seq_length:
        nearest = max(1, round(tokens / cfg.seq_length)) * cfg.seq_length
        yield f"train.global_batch_tokens={tokens} is not a multiple of seq_length={cfg.seq_length}; nearest: {nearest}"


def two_betas(cfg: SftConfig) -> Iterator[str]:
    """`optimizer.betas` are two decay rates."""
    if len(cfg.optimizer.betas) != 2:
        yield f"optimizer.betas={cfg.optimizer.betas} must be two numbers from 0 to below 1"


def schedule(cfg: SftConfig) -> Iterator[str]:
    """Each phase of the learning-rate schedule has at most one length; a decay phase exists where the kind needs it."""
    scheduler = cfg.scheduler
    yield from _at_most_one(cfg, "scheduler", ("warmup_iters", "warmup_samples", "warmup_ratio"))
    yield from _at_most_one(cfg, "scheduler", ("decay_iters", "decay_samples", "decay_ratio"))
    yield from _at_most_one(cfg, "scheduler", ("min_lr", "min_lr_frac"))
    decays = [scheduler.decay_iters, scheduler.decay_samples, scheduler.decay_ratio]
    if scheduler.kind in ("warmdown", "wsd") and decays == [None, None, None]:
        yield f"scheduler={scheduler.kind} needs a decay phase: set scheduler.decay_ratio=0.2, or decay_iters, or decay_samples"
    if scheduler.kind in ("cosine", "constant") and decays != [None, None, None]:
        yield f"scheduler={scheduler.kind} has no decay phase of its own length, so scheduler.decay_* has no effect; use scheduler=warmdown or wsd"
    yield from _falling_rates(cfg)


def _falling_rates(cfg: SftConfig) -> Iterator[str]:
    """The minimum learning rate is at most the peak, after scaling by `init_lr_frac`."""
    smallest, optimizer = cfg.scheduler.min_lr, cfg.optimizer
    peak = optimizer.lr * optimizer.init_lr_frac
    if smallest is None or smallest <= peak:
        return
    scaled = f" * optimizer.init_lr_frac={optimizer.init_lr_frac:g} = {peak:g}" if optimizer.init_lr_frac != 1 else ""
    yield (
        f"scheduler.min_lr={smallest:g} is above optimizer.lr={optimizer.lr:g}{scaled}, so the learning rate would "
        "rise during decay; use a smaller scheduler.min_lr, or scheduler.min_lr_frac=0.1"
    )


def optimizer_state(cfg: SftConfig) -> Iterator[str]:
    """8-bit optimizer state is one of the supported widths and stays on the device."""
    if not isinstance(cfg.optimizer, AdamW):
        return
    if cfg.optimizer.lora_plus_ratio is not None and cfg.peft is None:
        yield f"optimizer.lora_plus_ratio={cfg.optimizer.lora_plus_ratio:g} is for LoRA; add peft=lora, or remove it"
    if (bits := cfg.optimizer.state_bits) not in (8, 32):
        yield f"optimizer.state_bits={bits} is not one of 8, 32"
    if bits == 8 and cfg.train.cpu_offload:
        yield (
            "optimizer.state_bits=8 with train.cpu_offload=true: the optimizer state is then in host memory, where 8-bit "
            "updates are slow; remove one of them"
        )


def fp8(cfg: SftConfig) -> Iterator[str]:
    """What cannot be combined with fp8. Whether the device supports it is checked when training starts."""
    if not cfg.train.fp8:
        return
    if cfg.device in (Device.cpu, Device.mps):
        yield f"train.fp8=true: device={cfg.device.value} does not support fp8; remove it"
    if cfg.train.precision is Precision.fp32:
        yield "train.fp8=true with train.precision=fp32: fp8 is a mode of bf16 training; remove one of them"
    if cfg.peft is not None:
        yield "train.fp8=true with peft=lora: layers with adapters do not support fp8; remove one of them"
    if (cfg.parallel.tp or 1) > 1:
        yield f"train.fp8=true with parallel.tp={cfg.parallel.tp}: fp8 layers cannot be split; remove one of them"


def optimizer_warm_start(cfg: SftConfig) -> Iterator[str]:
    """`checkpoint.load_optimizer` needs a checkpoint to load from."""
    if cfg.checkpoint.load_optimizer and cfg.checkpoint.load is None:
        yield "checkpoint.load_optimizer=true needs checkpoint.load=<checkpoint with optimizer state>"


def frozen_parts(cfg: SftConfig) -> Iterator[str]:
    """`train.freeze` and `train.trainable` are for full fine-tuning, and their patterns match parameters."""
    for key, patterns in (("freeze", cfg.train.freeze), ("trainable", cfg.train.trainable)):
        if patterns and cfg.peft is not None:
            yield (
                f"train.{key}={patterns} is for full fine-tuning; peft=lora freezes the whole base: use "
                "peft.target_modules or peft.exclude_modules"
            )
    if cfg.peft is not None or not (cfg.train.freeze or cfg.train.trainable):
        return
    try:
        architecture = common_names(read_architecture(cfg))
        if all(architecture.get(key) for key in ("hidden_size", "num_hidden_layers", "model_type")):
            frozen_parameters({"vocab_size": 1, **architecture}, cfg.train)
    except ConfigError as error:
        yield from error.problems
    except ModelError:
        return  # model_is_set reports it
    if isinstance(cfg.optimizer, Muon) and (cfg.parallel.pp or 1) > 1:
        yield (
            f"parallel.pp={cfg.parallel.pp} with optimizer=muon and a frozen part: a stage may have no matrix to train; "
            "set parallel.pp=1 or optimizer=adamw"
        )


def _at_most_one(cfg: SftConfig, section: str, names: tuple[str, ...]) -> Iterator[str]:
    values = {name: getattr(getattr(cfg, section), name) for name in names}
    chosen = {name: value for name, value in values.items() if value is not None}
    if len(chosen) > 1:
        conflicting = " and ".join(f"{section}.{name}={value}" for name, value in chosen.items())
        clear = " ".join(f"{section}.{name}=null" for name in list(chosen)[:-1])
        yield f"{conflicting}: set only one of them; e.g. add {clear}"
