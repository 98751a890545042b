"""Rules between keys: each is a small generator whose texts name the key, its value and the fix.

Rules that look at files are in rules_files.py.
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
from sft_hydra.schema.config import Device, ExportFormat, Precision, Recompute, Runner, SftConfig
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
READABLE_FORMATS = ("auto", "openai", "prompt_completion", "sharegpt", "alpaca", "squad", "oasst", "mmlu", "gsm8k")

VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def two_betas(cfg: SftConfig) -> Iterator[str]:
    if len(cfg.optimizer.betas) != 2:
        yield f"optimizer.betas={cfg.optimizer.betas} must be two numbers from 0 to below 1"


def known_words(cfg: SftConfig) -> Iterator[str]:
    values = flatten(cfg)
    allowed = {
        **ALLOWED,
        **{f"data.sources.{name}.format": READABLE_FORMATS for name in cfg.data.sources},
    }
    for key, words in allowed.items():
        if (value := values.get(key)) is not None and value not in words:
            yield f"{key}={value} is none of {', '.join(words)}"


def run_name(cfg: SftConfig) -> Iterator[str]:
    if cfg.name is None:
        return
    parts = cfg.name.split("/")  # a job of a sweep may be named as <name>/<label>
    if any(not part.strip(". ") or re.search(r"[\\\n]", part) for part in parts) or parts[0] == "data":
        yield f"name={cfg.name!r} cannot be a run's folder below output_dir (`data` holds prepared data); choose another"


def model_is_set(cfg: SftConfig) -> Iterator[str]:
    try:
        architecture = read_architecture(cfg)
    except ModelError as error:
        where = f"model.path={cfg.model.path}: " if cfg.model.path else ""
        yield from (f"{where}{problem}" for problem in error.problems)
        return
    if "quantization_config" in architecture:
        method = architecture["quantization_config"].get("quant_method", "some method")
        yield f"model.path={cfg.model.path}: its weights are quantized ({method}), which is not read; give the model as it was"
    if cfg.model.path is None and not architecture:
        yield f"model={cfg.model.name} needs model.path=<folder or hub id>"
    elif cfg.model.path is None and "model_type" not in architecture:
        yield "model.architecture has no model_type, so it describes no model; e.g. +model.architecture.model_type=qwen3"


def export_formats(cfg: SftConfig) -> Iterator[str]:
    """Megatron's checkpoints hold whole models, and only Hugging Face folders go to the hub."""
    formats = cfg.export.formats if cfg.export.formats is not None else [cfg.export.format]
    if not formats:
        yield "export.formats=[] names no format; leave it out, or export.auto=false"
    if len(set(formats)) < len(formats):
        yield f"export.formats names a format twice: {', '.join(form.value for form in formats)}"
    if ExportFormat.megatron in formats and cfg.peft is not None and not cfg.export.merge:
        yield "export.format=megatron with peft=lora writes the merged model: add export.merge=true"
    if cfg.export.push_to is not None and ExportFormat.hf not in formats:
        yield f"export.push_to={cfg.export.push_to} uploads a Hugging Face folder: use export.formats=[hf,megatron]"


def data_is_set(cfg: SftConfig) -> Iterator[str]:
    data = cfg.data
    if cfg.runner not in DATA_RUNNERS:
        return
    if not (data.path or data.blend or data.sources or data.packed_dir):
        needs = {
            "jsonl": "data.path=<file.jsonl>",
            "blend": "data.blend=<blend.json> or +data.sources.<name>.path=<file.jsonl>",
            "packed": "data.packed_dir=<folder of packed Parquet shards>",
        }
        yield f"data={data.name} names no source; it needs {needs.get(data.name, 'data.path=<file.jsonl>')}"
    if data.trust_foreign and not data.packed_dir:
        yield "data.trust_foreign=true needs data.packed_dir=<folder of packed Parquet shards>"
    others = {"data.blend": data.blend, "data.sources": ", ".join(data.sources)}
    if data.path and (said := [f"{key} ({value})" for key, value in others.items() if value]):
        yield (
            f"data.path={data.path} beside {' and '.join(said)} of data={data.name}: for this file alone choose "
            "data=jsonl; for several sources data=blend +data.sources.<name>.path=<file>"
        )
    for name, source in data.sources.items():
        if not source.path:
            yield f"data.sources.{name} has no path; set data.sources.{name}.path=<file, folder or hub id>"
        if source.weight is not None and source.epochs is not None:
            yield f"data.sources.{name} has weight={source.weight} and epochs={source.epochs}; keep one of them"


def roles_are_known(cfg: SftConfig) -> Iterator[str]:
    roles = cfg.data.roles_to_train
    known = ("assistant", "user", "system", "developer", "tool")
    if not roles or not set(roles).issubset(known):
        yield f"data.roles_to_train={list(roles)} must be one or more of {', '.join(known)}"


def runner_is_set(cfg: SftConfig) -> Iterator[str]:
    """A training that was meant to be something else would take hours to say so."""
    asked = {
        "generate.prompts": (cfg.generate.prompts, Runner.generate),
        "generate.prompt_file": (cfg.generate.prompt_file, Runner.generate),
        "generate.interactive": (cfg.generate.interactive, Runner.generate),
        "inspect.html": (cfg.inspect.html, Runner.inspect),
    }
    for key, (value, runner) in asked.items():
        if value and cfg.runner is Runner.train:
            yield f"{key}={value} says nothing to runner=train; add runner={runner.value}, or leave it out"


def splits_sum_to_one(cfg: SftConfig) -> Iterator[str]:
    split = cfg.data.split
    total = split.train + split.valid + split.test
    if abs(total - 1) > 1e-6:
        yield f"data.split: train {split.train} + valid {split.valid} + test {split.test} = {total:g}; they must sum to 1"


def length_of_training(cfg: SftConfig) -> Iterator[str]:
    yield from _at_most_one(cfg, "train", ("train_iters", "epochs", "train_samples"))


def batch_size(cfg: SftConfig) -> Iterator[str]:
    train = cfg.train
    yield from _at_most_one(cfg, "train", ("global_batch_size", "global_batch_tokens"))
    tokens = train.global_batch_tokens
    if tokens is not None and tokens % cfg.seq_length:
        nearest = max(1, round(tokens / cfg.seq_length)) * cfg.seq_length
        yield f"train.global_batch_tokens={tokens} is not a multiple of seq_length={cfg.seq_length}; nearest: {nearest}"


def schedule(cfg: SftConfig) -> Iterator[str]:
    scheduler = cfg.scheduler
    yield from _at_most_one(cfg, "scheduler", ("warmup_iters", "warmup_samples", "warmup_ratio"))
    yield from _at_most_one(cfg, "scheduler", ("decay_iters", "decay_samples", "decay_ratio"))
    yield from _at_most_one(cfg, "scheduler", ("min_lr", "min_lr_frac"))
    decays = [scheduler.decay_iters, scheduler.decay_samples, scheduler.decay_ratio]
    if scheduler.kind in ("warmdown", "wsd") and decays == [None, None, None]:
        yield f"scheduler={scheduler.kind} needs its last part: scheduler.decay_ratio=0.2, or decay_iters, or decay_samples"
    if scheduler.kind in ("cosine", "constant") and decays != [None, None, None]:
        yield f"scheduler={scheduler.kind} has no last part: scheduler.decay_* has no effect; use scheduler=warmdown or wsd"
    yield from _falling_rates(cfg)


def _falling_rates(cfg: SftConfig) -> Iterator[str]:
    """The smallest rate must not be above the peak, which `init_lr_frac` scales too."""
    smallest, optimizer = cfg.scheduler.min_lr, cfg.optimizer
    peak = optimizer.lr * optimizer.init_lr_frac
    if smallest is None or smallest <= peak:
        return
    scaled = f" * optimizer.init_lr_frac={optimizer.init_lr_frac:g} = {peak:g}" if optimizer.init_lr_frac != 1 else ""
    yield (
        f"scheduler.min_lr={smallest:g} is above optimizer.lr={optimizer.lr:g}{scaled}, so rates would climb where they "
        "should fall; use a smaller scheduler.min_lr, or scheduler.min_lr_frac=0.1"
    )


def layout(cfg: SftConfig) -> Iterator[str]:
    """Sizes of parallelism against world, model and batch."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_said says so
    plan = run_layout(cfg, architecture)
    problems = list(layout_problems(plan, architecture, cfg.seq_length))
    rows = rows_per_step(cfg.train, cfg.seq_length)
    if cfg.runner is Runner.train and not problems and rows % plan.dp:
        problems = [
            f"train.global_batch_size={rows} is not a multiple of the data-parallel size {plan.dp}; "
            f"use train.global_batch_size={-(-rows // plan.dp) * plan.dp}"
        ]
    if not any(possible_layouts(cfg, architecture)):  # else sizes that are null will be chosen so that it can be
        yield from problems


def foreign_model(cfg: SftConfig) -> Iterator[str]:
    """What models cannot do that train through the transformers implementation."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_said says so
    if not is_generic(cfg, architecture):
        return
    family = architecture.get("model_type", "of this model")
    why = f"model_type {family} trains through the transformers implementation (our own: {', '.join(FAMILIES)})"
    if cfg.model.path is None:
        yield f"{why}, which has no random start here: set model.path"
    if is_mixture(architecture):
        yield f"{why}, which is for dense models: of mixtures of experts there are qwen3_moe and nemotron_h"
    for key in ("tp", "pp", "cp", "ep"):
        if (size := getattr(cfg.parallel, key)) is not None and size > 1:
            yield f"parallel.{key}={size}: {why}, which FSDP alone spreads over ranks; leave parallel.{key} out"
    for key in ("compile", "fp8"):
        if getattr(cfg.train, key):
            yield f"train.{key}=true: {why}, for which it is not built; leave it out"
    length = length_of_fixed_positions(architecture)
    together = cfg.data.packing is not Packing.none or cfg.train.micro_batch_size > 1
    if length is not None and cfg.seq_length > length and together:
        yield (
            f"seq_length={cfg.seq_length}: beyond {length} tokens this model turns positions by the longest conversation "
            f"of a batch; use seq_length={length}, or data.packing=none with train.micro_batch_size=1"
        )


def fp8(cfg: SftConfig) -> Iterator[str]:
    """What fp8 does not go with; whether the device can is known where it is."""
    if not cfg.train.fp8:
        return
    if cfg.device in (Device.cpu, Device.mps):
        yield f"train.fp8=true: device={cfg.device.value} does not multiply in fp8; leave it out"
    if cfg.train.precision is Precision.fp32:
        yield "train.fp8=true with train.precision=fp32: fp8 is for training in bf16; leave one of them out"
    if cfg.peft is not None:
        yield "train.fp8=true with peft=lora: layers with adapters are not multiplied in fp8; leave one of them out"
    if (cfg.parallel.tp or 1) > 1:
        yield f"train.fp8=true with parallel.tp={cfg.parallel.tp}: layers in fp8 are not split; leave one of them out"


def optimizer_state(cfg: SftConfig) -> Iterator[str]:
    if not isinstance(cfg.optimizer, AdamW):
        return
    if (bits := cfg.optimizer.state_bits) not in (8, 32):
        yield f"optimizer.state_bits={bits} is none of 8, 32"
    if bits == 8 and cfg.train.cpu_offload:
        yield (
            "optimizer.state_bits=8 with train.cpu_offload=true: the state is in the host's memory then, where eight bits "
            "are slow; leave one of them out"
        )


def routers(cfg: SftConfig) -> Iterator[str]:
    """Even use of experts can be asked for where there are routers of that kind."""
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_said says so
    asked = {
        "router_aux_loss": (cfg.train.router_aux_loss, "qwen3_moe", "softmax"),
        "router_bias_update_rate": (cfg.train.router_bias_update_rate, "nemotron_h", "sigmoid"),
    }
    for key, (value, family, kind) in asked.items():
        if value <= 0:
            continue
        if architecture.get("model_type") != family or not num_experts(architecture):
            yield f"train.{key}={value:g} is for mixtures of experts with {kind} routers ({family}), which this model is not"
        elif cfg.train.recompute is not Recompute.none and run_layout(cfg, architecture).pp > 1:
            yield (
                f"train.{key}={value:g} with pipeline stages and train.recompute={cfg.train.recompute.value}: routers would count "
                "tokens of another micro-batch when they compute again; set train.recompute=none or parallel.pp=1"
            )
    if cfg.train.router_bias_update_rate and cfg.peft is not None:
        yield "train.router_bias_update_rate trains the base, which peft=lora freezes; drop one of them"


def lora_targets(cfg: SftConfig) -> Iterator[str]:
    peft = cfg.peft
    if peft is not None and peft.target_modules and peft.exclude_modules:
        yield (
            f"peft.target_modules={peft.target_modules} and peft.exclude_modules={peft.exclude_modules}: "
            "say which modules to adapt, or which to leave out, not both"
        )
    if peft is not None and peft.match_all_linear and peft.exclude_modules:
        yield "peft.match_all_linear=true adapts every linear layer: drop peft.exclude_modules, or match_all_linear"


def added_tokens(cfg: SftConfig) -> Iterator[str]:
    tokens, peft = [*cfg.tokenizer.add_tokens, *cfg.tokenizer.add_special_tokens], cfg.peft
    if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
        yield f"tokenizer.add_tokens and add_special_tokens: {twice} more than once; name each token once"
    if "" in tokens:
        yield "tokenizer.add_tokens and add_special_tokens: '' is no token; leave it out"
    if peft is None:
        return
    if unknown := [name for name in peft.modules_to_save if name not in TABLES]:
        yield f"peft.modules_to_save={peft.modules_to_save}: {unknown[0]} is none of {', '.join(TABLES)}"
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
    if cfg.checkpoint.load_optimizer and cfg.checkpoint.load is None:
        yield "checkpoint.load_optimizer=true needs checkpoint.load=<checkpoint to take it from>"


def no_secrets(cfg: SftConfig) -> Iterator[str]:
    """A config is written to disk and shown in reports: secrets travel by name only."""
    usual = flatten(SftConfig())
    for key, value in flatten(cfg).items():
        if key == "run_dir" or value is None or value == usual.get(key):  # the folder is made of others
            continue
        variable = key.removeprefix("cluster.env.")
        named = variable != key and is_secret_name(variable)
        found = assigns_secret if key.startswith("cluster.") else holds_secret
        if named or any(found(str(part)) for part in (value if isinstance(value, list) else [value])):
            name = variable if variable != key else "NAME"
            yield f"{key} looks like a secret; export it in your shell and name it: cluster.env_pass=[...,{name}]"


def one_line_each(cfg: SftConfig) -> Iterator[str]:
    """What reaches a batch script must not reach out of its line, nor be more than the name of a variable."""
    values = {key: value for key, value in flatten(cfg).items() if key.startswith("cluster.") or key == "output_dir"}
    for key, value in values.items():
        if key == "cluster.setup":
            continue  # lines of shell, on purpose
        if any(sign in str(part) for part in (value if isinstance(value, list) else [value]) for sign in "\n\r\0"):
            yield f"{key}={value!r} must be one line"
    for key, names in (("cluster.env", [*cfg.cluster.env]), ("cluster.env_pass", cfg.cluster.env_pass)):
        yield from (f"{key}: {name!r} is no name of a variable" for name in names if not VARIABLE.fullmatch(name))


def _at_most_one(cfg: SftConfig, section: str, names: tuple[str, ...]) -> Iterator[str]:
    values = {name: getattr(getattr(cfg, section), name) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) > 1:
        said = " and ".join(f"{section}.{name}={value}" for name, value in given.items())
        clear = " ".join(f"{section}.{name}=null" for name in list(given)[:-1])
        yield f"{said}: say it once; e.g. add {clear}"


RULES: tuple[Rule, ...] = (
    two_betas, known_words, run_name, model_is_set, export_formats, data_is_set, roles_are_known, runner_is_set,
    splits_sum_to_one, length_of_training, batch_size,
    schedule, layout, foreign_model, fp8, optimizer_state, routers, lora_targets, frozen_parts, quantized_base, added_tokens,
    optimizer_warm_start, no_secrets,
    one_line_each,
)  # fmt: skip


def rule_problems(cfg: SftConfig, rules: tuple[Rule, ...]) -> list[str]:
    return list(chain.from_iterable(rule(cfg) for rule in rules))
