"""Rules between config keys. Each is a generator of messages that name the key, its value and the fix.

Rules that read files are in rules_files.py, those about `eval` in rules_eval.py.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain

from sft_hydra.config.adapter import TABLES
from sft_hydra.config.rules_frozen import frozen_parts, quantized_base
from sft_hydra.config.serialize import flatten
from sft_hydra.errors import ModelError
from sft_hydra.planning.architecture import (
    FAMILIES,
    is_generic,
    is_mixture,
    length_of_fixed_positions,
    read_architecture,
)
from sft_hydra.planning.layout import layout_problems, num_experts
from sft_hydra.planning.topology import possible_layouts, rows_per_step, run_layout
from sft_hydra.schema.config import Device, ExportFormat, LoraConfig, Precision, Recompute, Runner, SftConfig
from sft_hydra.schema.data import Packing
from sft_hydra.schema.optim import AdamW
from sft_hydra.secret_text import assigns_secret, holds_secret, is_secret_name

Rule = Callable[[SftConfig], Iterator[str]]

DATA_RUNNERS = (Runner.train, Runner.data_prep, Runner.inspect)

ALLOWED = {
    "scheduler.kind": ("cosine", "warmdown", "wsd", "constant"),
    "peft.dropout_position": ("pre", "post"),
    "peft.quantize_base": ("nf4", "int8"),
    "peft.a_init": ("xavier", "kaiming", "uniform", "normal"),
    "inspect.split": ("train", "valid", "test"),
    "logger.wandb.mode": ("online", "offline", "disabled"),
}
READABLE_FORMATS = (
    "auto",
    "openai",
    "prompt_completion",
    "sharegpt",
    "alpaca",
    "squad",
    "oasst",
    "mmlu",
    "gsm8k",
    "text",
)

VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def two_betas(cfg: SftConfig) -> Iterator[str]:
    """`optimizer.betas` are two decay rates."""
    if len(cfg.optimizer.betas) != 2:
        yield f"optimizer.betas={cfg.optimizer.betas} must be two numbers from 0 to below 1"


def known_words(cfg: SftConfig) -> Iterator[str]:
    """Text keys that take one of a fixed list of values."""
    values = flatten(cfg)
    allowed = {
        **ALLOWED,
        "data.default.format": READABLE_FORMATS,
        **{f"data.sources.{name}.format": READABLE_FORMATS for name in cfg.data.sources},
    }
    for key, words in allowed.items():
        if (value := values.get(key)) is not None and value not in words:
            yield f"{key}={value} is not one of {', '.join(words)}"


def run_name(cfg: SftConfig) -> Iterator[str]:
    """`name` is a folder below `output_dir`, and not the one of prepared data."""
    if cfg.name is None:
        return
    parts = cfg.name.split("/")  # a job of a sweep may be named as <name>/<label>
    if any(not part.strip(". ") or re.search(r"[\\\n]", part) for part in parts) or parts[0] == "data":
        yield f"name={cfg.name!r} is not a valid folder name below output_dir (`data` is reserved for prepared data); choose another name"


def model_is_set(cfg: SftConfig) -> Iterator[str]:
    """There is a model: a path or an architecture, with weights that are not quantized."""
    try:
        architecture = read_architecture(cfg)
    except ModelError as error:
        where = f"model.path={cfg.model.path}: " if cfg.model.path else ""
        yield from (f"{where}{problem}" for problem in error.problems)
        return
    if "quantization_config" in architecture:
        method = architecture["quantization_config"].get("quant_method", "some method")
        yield f"model.path={cfg.model.path}: quantized weights ({method}) are not supported; use the unquantized model"
    if cfg.model.path is None and not architecture:
        yield f"model={cfg.model.name} needs model.path=<folder or hub id>"
    elif cfg.model.path is None and "model_type" not in architecture:
        yield "model.architecture has no model_type; add it, e.g. +model.architecture.model_type=qwen3"


def export_formats(cfg: SftConfig) -> Iterator[str]:
    """Megatron's checkpoints hold whole models, and only Hugging Face folders go to the hub."""
    formats = cfg.export.formats if cfg.export.formats is not None else [cfg.export.format]
    if not formats:
        yield "export.formats=[] is empty; remove it, or use export.auto=false to skip the export"
    if len(set(formats)) < len(formats):
        yield f"export.formats contains a format twice: {', '.join(form.value for form in formats)}"
    if ExportFormat.megatron in formats and cfg.peft is not None and not cfg.export.merge:
        yield "export.format=megatron with peft=lora writes the merged model: add export.merge=true"
    if cfg.export.push_to is not None and ExportFormat.hf not in formats:
        yield f"export.push_to={cfg.export.push_to} uploads a Hugging Face folder: use export.formats=[hf,megatron]"


def data_is_set(cfg: SftConfig) -> Iterator[str]:
    """There is data, from one place only, and every source has a path."""
    data = cfg.data
    if cfg.runner not in DATA_RUNNERS:
        return
    if not (data.path or data.blend or data.sources or data.packed_dir):
        needs = {
            "jsonl": "data.path=<file.jsonl>",
            "blend": "data.blend=<blend.json> or +data.sources.<name>.path=<file.jsonl>",
            "packed": "data.packed_dir=<folder of packed Parquet shards>",
        }
        yield f"data={data.name} has no source; set {needs.get(data.name, 'data.path=<file.jsonl>')}"
    if data.trust_foreign and not data.packed_dir:
        yield "data.trust_foreign=true needs data.packed_dir=<folder of packed Parquet shards>"
    others = {"data.blend": data.blend, "data.sources": ", ".join(data.sources)}
    if data.path and (conflicting := [f"{key} ({value})" for key, value in others.items() if value]):
        yield (
            f"data.path={data.path} conflicts with {' and '.join(conflicting)} of data={data.name}: to train on this file only use "
            "data=jsonl; to train on several sources use data=blend +data.sources.<name>.path=<file>"
        )
    for name, source in data.sources.items():
        if not source.path:
            yield f"data.sources.{name} has no path; set data.sources.{name}.path=<file, folder or hub id>"
        if source.weight is not None and source.epochs is not None:
            yield f"data.sources.{name} has weight={source.weight} and epochs={source.epochs}; set only one of them"


def roles_are_known(cfg: SftConfig) -> Iterator[str]:
    """`data.roles_to_train` lists at least one role, and only known ones."""
    roles = cfg.data.roles_to_train
    known = ("assistant", "user", "system", "developer", "tool")
    if not roles or not set(roles).issubset(known):
        yield f"data.roles_to_train={list(roles)} must contain one or more of {', '.join(known)}"


def runner_is_set(cfg: SftConfig) -> Iterator[str]:
    """Keys of another runner are not set with runner=train: the wrong runner would be noticed only after training."""
    requested = {
        "generate.prompts": (cfg.generate.prompts, Runner.generate),
        "generate.prompt_file": (cfg.generate.prompt_file, Runner.generate),
        "generate.interactive": (cfg.generate.interactive, Runner.generate),
        "inspect.html": (cfg.inspect.html, Runner.inspect),
    }
    for key, (value, runner) in requested.items():
        if value and cfg.runner is Runner.train:
            yield f"{key}={value} has no effect with runner=train; add runner={runner.value}, or remove it"


def splits_sum_to_one(cfg: SftConfig) -> Iterator[str]:
    """The ratios of `data.split` sum to 1."""
    split = cfg.data.split
    total = split.train + split.valid + split.test
    if abs(total - 1) > 1e-6:
        yield f"data.split: train {split.train} + valid {split.valid} + test {split.test} = {total:g}; they must sum to 1"


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


def layout(cfg: SftConfig) -> Iterator[str]:
    """Parallel sizes fit the number of ranks, the model and the batch."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_set reports it
    plan = run_layout(cfg, architecture)
    problems = list(layout_problems(plan, architecture, cfg.seq_length))
    rows = rows_per_step(cfg.train, cfg.seq_length)
    if cfg.runner is Runner.train and not problems and rows % plan.dp:
        problems = [
            f"train.global_batch_size={rows} is not a multiple of the data-parallel size {plan.dp}; "
            f"use train.global_batch_size={-(-rows // plan.dp) * plan.dp}"
        ]
    if not any(possible_layouts(cfg, architecture)):  # otherwise sizes that are null are chosen to fit
        yield from problems


def foreign_model(cfg: SftConfig) -> Iterator[str]:
    """What is not supported for models that train through the transformers implementation."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_set reports it
    if not is_generic(cfg, architecture):
        return
    family = architecture.get("model_type", "of this model")
    why = f"model_type {family} trains through the transformers implementation (our own: {', '.join(FAMILIES)})"
    if cfg.model.path is None:
        yield f"{why}; random initialization is not supported for it; set model.path"
    if is_mixture(architecture):
        yield f"{why}, which supports dense models only; mixture-of-experts models with their own implementation are qwen3_moe and nemotron_h"
    for key in ("tp", "pp", "cp", "ep"):
        if (size := getattr(cfg.parallel, key)) is not None and size > 1:
            yield f"parallel.{key}={size}: {why}, which supports FSDP only; remove parallel.{key}"
    for key in ("compile", "fp8"):
        if getattr(cfg.train, key):
            yield f"train.{key}=true: {why}; this is not supported for it; remove it"
    length = length_of_fixed_positions(architecture)
    together = cfg.data.packing is not Packing.none or cfg.train.micro_batch_size > 1
    if length is not None and cfg.seq_length > length and together:
        yield (
            f"seq_length={cfg.seq_length}: beyond {length} tokens this model's RoPE scaling depends on the longest sequence "
            f"in the batch; use seq_length={length}, or data.packing=none with train.micro_batch_size=1"
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


def routers(cfg: SftConfig) -> Iterator[str]:
    """Expert load balancing is set only for models with routers of that kind."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_set reports it
    requested = {
        "router_aux_loss": (cfg.train.router_aux_loss, "qwen3_moe", "softmax"),
        "router_bias_update_rate": (cfg.train.router_bias_update_rate, "nemotron_h", "sigmoid"),
    }
    for key, (value, family, kind) in requested.items():
        if value <= 0:
            continue
        if architecture.get("model_type") != family or not num_experts(architecture):
            yield f"train.{key}={value:g} needs a mixture of experts with {kind} routers ({family}), which this model is not; remove it"
        elif cfg.train.recompute is not Recompute.none and run_layout(cfg, architecture).pp > 1:
            yield (
                f"train.{key}={value:g} with pipeline parallelism and train.recompute={cfg.train.recompute.value}: routers would "
                "count tokens of another micro-batch when they compute again; set train.recompute=none or parallel.pp=1"
            )
    if cfg.train.router_bias_update_rate and cfg.peft is not None:
        yield "train.router_bias_update_rate updates the base model, which peft=lora freezes; remove one of them"


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


def added_tokens(cfg: SftConfig) -> Iterator[str]:
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
            f"peft.trainable_new_tokens=true and peft.modules_to_save={peft.modules_to_save}: say whether only the new rows "
            "are trained, or whole tables, not both"
        )


def optimizer_warm_start(cfg: SftConfig) -> Iterator[str]:
    """`checkpoint.load_optimizer` needs a checkpoint to load from."""
    if cfg.checkpoint.load_optimizer and cfg.checkpoint.load is None:
        yield "checkpoint.load_optimizer=true needs checkpoint.load=<checkpoint with optimizer state>"


def no_secrets(cfg: SftConfig) -> Iterator[str]:
    """No value is a secret: configs are written to disk and shown in reports, so secrets are passed by variable name only."""
    usual = flatten(SftConfig())
    for key, value in flatten(cfg).items():
        if key == "run_dir" or value is None or value == usual.get(key):  # the folder is made of others
            continue
        variable = key.removeprefix("cluster.env.")
        named = variable != key and is_secret_name(variable)
        found = assigns_secret if key.startswith("cluster.") else holds_secret
        if named or any(found(str(part)) for part in (value if isinstance(value, list) else [value])):
            name = variable if variable != key else "NAME"
            yield f"{key} looks like a secret; export it in your shell and pass it by name: cluster.env_pass=[...,{name}]"


def one_line_each(cfg: SftConfig) -> Iterator[str]:
    """Values that go into a batch script are one line each; variable names are valid."""
    values = {key: value for key, value in flatten(cfg).items() if key.startswith("cluster.") or key == "output_dir"}
    for key, value in values.items():
        if key == "cluster.setup":
            continue  # lines of shell, on purpose
        if any(sign in str(part) for part in (value if isinstance(value, list) else [value]) for sign in "\n\r\0"):
            yield f"{key}={value!r} must be one line"
    for key, names in (("cluster.env", [*cfg.cluster.env]), ("cluster.env_pass", cfg.cluster.env_pass)):
        yield from (
            f"{key}: {name!r} is not a valid environment variable name"
            for name in names
            if not VARIABLE.fullmatch(name)
        )


def _at_most_one(cfg: SftConfig, section: str, names: tuple[str, ...]) -> Iterator[str]:
    values = {name: getattr(getattr(cfg, section), name) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) > 1:
        conflicting = " and ".join(f"{section}.{name}={value}" for name, value in given.items())
        clear = " ".join(f"{section}.{name}=null" for name in list(given)[:-1])
        yield f"{conflicting}: set only one of them; e.g. add {clear}"


RULES: tuple[Rule, ...] = (
    two_betas, known_words, run_name, model_is_set, export_formats, data_is_set, roles_are_known, runner_is_set,
    splits_sum_to_one, length_of_training, batch_size,
    schedule, layout, foreign_model, fp8, optimizer_state, routers, lora_targets, lora_start, frozen_parts, quantized_base,
    added_tokens, optimizer_warm_start, no_secrets,
    one_line_each,
)  # fmt: skip


def rule_problems(cfg: SftConfig, rules: tuple[Rule, ...]) -> list[str]:
    return list(chain.from_iterable(rule(cfg) for rule in rules))
