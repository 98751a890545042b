"""Rules about what is not trained: parts of a model in full fine-tuning, and a quantized base."""

from collections.abc import Iterator

from sft_hydra.errors import ConfigError, ModelError
from sft_hydra.planning.architecture import common_names, read_architecture
from sft_hydra.planning.estimate.trained import frozen_parameters
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import Muon


def frozen_parts(cfg: SftConfig) -> Iterator[str]:
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
        return  # model_is_said says so
    if isinstance(cfg.optimizer, Muon) and (cfg.parallel.pp or 1) > 1:
        yield (
            f"parallel.pp={cfg.parallel.pp} with optimizer=muon and a frozen part: a stage may have no matrix to train; "
            "set parallel.pp=1 or optimizer=adamw"
        )


def quantized_base(cfg: SftConfig) -> Iterator[str]:
    """Blocks of 64 weights share a scale, and 256 scales another: parts of a weight would be quantized otherwise."""
    tp = cfg.parallel.tp or 1
    if cfg.peft is not None and cfg.peft.quantize_base is not None and tp > 1:
        yield (
            f"parallel.tp={tp} with peft.quantize_base={cfg.peft.quantize_base}: a rank would hold parts of blocks that share "
            "a scale; set parallel.tp=1 (FSDP, parallel.ep, parallel.pp and parallel.cp split a quantized base exactly)"
        )
    if cfg.peft is not None and cfg.peft.quantize_base is not None and cfg.peft.use_dora:
        yield (
            f"peft.use_dora=true with peft.quantize_base={cfg.peft.quantize_base}: DoRA needs the norms of whole weights at every "
            "step, which a quantized base does not keep; drop one of them"
        )
    start = cfg.peft.init_lora_weights if cfg.peft is not None else None
    if cfg.peft is not None and cfg.peft.quantize_base is not None and start not in (None, "gaussian"):
        yield (
            f"peft.init_lora_weights={start} with peft.quantize_base={cfg.peft.quantize_base}: A and B would start from weights "
            "that are not kept whole; drop one of them"
        )
