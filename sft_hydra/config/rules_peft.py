"""Rules about LoRA: which layers are adapted, how adapters start, a quantized base, new tokens."""

import re
from collections.abc import Iterator

from sft_hydra.config.adapter import TABLES
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.peft import LoraConfig


def lora_targets(cfg: SftConfig) -> Iterator[str]:
    """The adapted layers are defined in one way."""
    peft = cfg.peft
    if peft is not None and peft.target_modules and peft.exclude_modules:
        yield (
            f"peft.target_modules={peft.target_modules} and peft.exclude_modules={peft.exclude_modules}: "
            "set only one of them"
        )
    if peft is not None and peft.match_all_linear and peft.exclude_modules:
        yield "peft.match_all_linear=true adapts every linear layer; remove peft.exclude_modules or peft.match_all_linear"


def lora_start(cfg: SftConfig) -> Iterator[str]:
    """`peft.init_lora_weights` is known and is the only initialization of the adapters."""
    kind = cfg.peft.init_lora_weights if cfg.peft is not None else None
    if cfg.peft is None or kind is None:
        return
    if not re.fullmatch(r"gaussian|olora|pissa|pissa_niter_[1-9]\d?", kind):
        yield f"peft.init_lora_weights={kind} is not one of gaussian, olora, pissa, pissa_niter_<1 to 99>"
    if cfg.peft.a_init != LoraConfig().a_init:
        yield f"peft.init_lora_weights={kind} and peft.a_init={cfg.peft.a_init} both set the initialization of A; remove one of them"
    if cfg.peft.path is not None:
        yield f"peft.init_lora_weights={kind}: the adapter in peft.path={cfg.peft.path} has trained values; remove one of them"


def quantized_base(cfg: SftConfig) -> Iterator[str]:
    """What a quantized base excludes: blocks of 64 weights share a scale, and 256 scales another, so a part of a weight would be
    quantized differently from the whole."""
    tp = cfg.parallel.tp or 1
    if cfg.peft is not None and cfg.peft.quantize_base is not None and tp > 1:
        yield (
            f"parallel.tp={tp} with peft.quantize_base={cfg.peft.quantize_base}: a rank would hold parts of blocks that share "
            "a scale; set parallel.tp=1 (FSDP, parallel.ep, parallel.pp and parallel.cp split a quantized base exactly)"
        )
    if cfg.peft is not None and cfg.peft.quantize_base is not None and cfg.peft.use_dora:
        yield (
            f"peft.use_dora=true with peft.quantize_base={cfg.peft.quantize_base}: DoRA needs the norms of whole weights at every "
            "step, which a quantized base does not keep; remove one of them"
        )
    start = cfg.peft.init_lora_weights if cfg.peft is not None else None
    if cfg.peft is not None and cfg.peft.quantize_base is not None and start not in (None, "gaussian"):
        yield (
            f"peft.init_lora_weights={start} with peft.quantize_base={cfg.peft.quantize_base}: A and B would start from weights "
            "that are kept only quantized; remove one of them"
        )


def added_tokens(cfg: SftConfig) -> Iterator[str]:
    """Added tokens are distinct, and with LoRA their rows are trained."""
    tokens, peft = [*cfg.tokenizer.add_tokens, *cfg.tokenizer.add_special_tokens], cfg.peft
    if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
        yield f"tokenizer.add_tokens and add_special_tokens: {twice} more than once; name each token once"
    if "" in tokens:
        yield "tokenizer.add_tokens and add_special_tokens: '' is not a token; remove it"
    if peft is None:
        return
    if unknown := [name for name in peft.modules_to_save if name not in TABLES]:
        yield f"peft.modules_to_save={peft.modules_to_save}: {unknown[0]} is not one of {', '.join(TABLES)}"
    if peft.trainable_new_tokens and not tokens and peft.path is None:
        yield "peft.trainable_new_tokens=true: there are no new tokens; name them in tokenizer.add_tokens=[...]"
    if tokens and not peft.trainable_new_tokens and set(peft.modules_to_save) != set(TABLES) and peft.path is None:
        yield (
            f"tokenizer.add_tokens={tokens[:5]} with peft=lora: an adapter holds no rows for them; use "
            f"peft.trainable_new_tokens=true, or peft.modules_to_save=[{','.join(TABLES)}]"
        )
    if peft.trainable_new_tokens and peft.modules_to_save:
        yield (
            f"peft.trainable_new_tokens=true and peft.modules_to_save={peft.modules_to_save} both choose what is "
            "trained of embedding and head: only the new rows, or whole tables; remove one of them"
        )
