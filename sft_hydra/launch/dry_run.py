"""The plan of a run as text: the output of `dry_run=true`, and the head of every run's log. Read-only."""

from typing import Any

from sft_hydra.chat.tokenizer import grown_vocabulary, load_tokenizer
from sft_hydra.config.gpus import gpus_here
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep import prepare
from sft_hydra.data_prep.blend import train_rows
from sft_hydra.engine.outlook import plan_warnings
from sft_hydra.engine.schedule import total_steps
from sft_hydra.errors import SeqLengthMismatchError, TokenizerMismatchError, UserError
from sft_hydra.planning.architecture import is_generic, read_architecture
from sft_hydra.planning.auto_parallel import USABLE, Choice, choose, with_layout
from sft_hydra.planning.estimate import (
    ASSUMED_MFU,
    GIB,
    PEAK_FLOPS,
    count_parameters,
    estimate_memory,
    flops_per_token,
    savings,
    trainable_parameters,
)
from sft_hydra.planning.layout import LONG_ROW, Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.planning.topology import rows_per_step
from sft_hydra.schema.cluster import ClusterKind
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner
from sft_hydra.schema.train import Precision

SMALL = GIB // 4  # bytes; a smaller memory estimate is shown without its parts
FEW_ROWS = 10_000  # conversations; for fewer, the advice is LoRA and smaller batches


def describe(cfg: SftConfig) -> str:
    """Text of the plan: `name  value` lines, then advice. UserError if the config.json cannot be read."""
    arch = _with_vocabulary(cfg, read_architecture(cfg))
    layout, candidates = choose(cfg, arch)
    cfg = with_layout(cfg, layout)
    packed = _packed_set(cfg)
    lines = [("run", str(cfg.run_dir)), ("runner", cfg.runner.value), *_model_lines(cfg, arch)]
    lines += _data_lines(cfg, packed)
    if cfg.runner is Runner.train and cfg.cluster.kind is ClusterKind.local:
        lines.append(("gpus", gpus_here().describe()))
    if cfg.runner is Runner.train:
        lines += [
            ("layout", layout.describe()),
            *_choice_lines(cfg, candidates),
            *_work_lines(cfg, arch, layout, packed),
        ]
    width = max(len(name) for name, _ in lines)
    text = [f"{name:<{width}}  {value}" for name, value in lines]
    return "\n".join(text + [f"advice: {line}" for line in _advice(cfg, arch, layout, packed)])


def _choice_lines(cfg: SftConfig, candidates: list[Choice]) -> list[tuple[str, str]]:
    """The chosen layout and the next best ones."""
    if len(candidates) < 2:
        return []
    fitting = sum(choice.fits for choice in candidates)
    why = "fastest" if fitting else "smallest memory"
    limit = f"cluster.gpu_memory_gib={cfg.cluster.gpu_memory_gib:g}"
    head = f"{why} of {len(candidates)} valid layouts, {fitting} of which fit in {limit}"
    return [
        ("chosen", f"{head}; {candidates[0].describe()}"),
        *(("then", choice.describe()) for choice in candidates[1:4]),
    ]


def _packed_set(cfg: SftConfig) -> PackedSet | None:
    try:
        load_tokenizer(cfg)
        if cfg.data.packed_dir is None:
            return prepare.open_existing(cfg)
    except (TokenizerMismatchError, SeqLengthMismatchError):
        raise  # what would end the run ends its plan
    except UserError:  # no tokenizer or no hub within reach: the plan stands without data figures
        return None
    return prepare.open_existing(cfg)


def _with_vocabulary(cfg: SftConfig, arch: dict[str, Any]) -> dict[str, Any]:
    """A random start takes the tokenizer's number of ids, if that is within reach; a model grows by added tokens.
    TokenizerMismatchError if the model has
    fewer."""
    try:
        tokenizer = load_tokenizer(cfg)
    except UserError:
        return arch
    if cfg.model.path is None and arch and "vocab_size" not in arch:
        return {**arch, "vocab_size": tokenizer.vocab_size}
    if cfg.runner is not Runner.data_prep:
        return grown_vocabulary(cfg, arch, tokenizer)
    return arch


def _model_lines(cfg: SftConfig, arch: dict[str, Any]) -> list[tuple[str, str]]:
    where = cfg.model.path or "random initialization"
    if not arch.get("vocab_size"):
        file = "tokenizer" if cfg.model.path is None else "config.json"
        return [("model", f"{cfg.model.name} ({where}), sizes are unknown until its {file} is read")]
    params = count_parameters(arch)
    text = f"{cfg.model.name} ({where}), {_count(params.total)} parameters"
    if params.active != params.total:
        text += f", {_count(params.active)} active for one token"
    trained = trainable_parameters(arch, cfg.peft, cfg.tokenizer.num_new_tokens, cfg.train)
    chosen = "what train.freeze and train.trainable leave" if cfg.train.freeze or cfg.train.trainable else "all"
    how = chosen if cfg.peft is None else f"LoRA dim={cfg.peft.dim} alpha={cfg.peft.alpha:g}"
    if cfg.peft is not None and cfg.peft.quantize_base:
        how += f" on a base in {cfg.peft.quantize_base}"
    return [("model", text), ("trained", f"{how}: about {_count(trained)} parameters")]


def _data_lines(cfg: SftConfig, packed: PackedSet | None) -> list[tuple[str, str]]:
    if packed is None:
        sources = cfg.data.path or cfg.data.blend or ", ".join(f"{n} ({s.path})" for n, s in cfg.data.sources.items())
        action = "it will be prepared first" if cfg.data.prepare.value == "auto" else "and data.prepare=never"
        return [("data", f"{cfg.data.name}: {sources or cfg.data.packed_dir}; not prepared yet ({action})")]
    meta = packed.metadata
    splits = ", ".join(f"{split} {packed.num_rows(split):,}" for split in ("train", "valid", "test"))
    lines = [
        ("data", f"{cfg.data.name}: {packed.folder}"),
        ("rows", f"{splits} of {cfg.seq_length} tokens, {100 * packed.fill(cfg.seq_length):.2f} % full"),
    ]
    return lines + ([("packed by", f"another tool; unknown: {packed.unknown}")] if meta.get("foreign") else [])


def _work_lines(
    cfg: SftConfig, arch: dict[str, Any], layout: Layout, packed: PackedSet | None
) -> list[tuple[str, str]]:
    rows = rows_per_step(cfg.train, cfg.seq_length)
    lines = [
        ("batch", f"{rows} rows = {rows * cfg.seq_length:,} tokens per step, micro-batch {cfg.train.micro_batch_size}")
    ]
    steps = _planned_steps(cfg, packed)
    epochs = "one epoch" if cfg.train.epochs is None else f"{cfg.train.epochs:g} epochs"
    lines.append(("steps", f"{steps:,}" if steps else f"{epochs} (the number is known once the data is prepared)"))
    if not arch.get("vocab_size"):
        return lines
    precision = cfg.train.precision or (Precision.fp32 if cfg.model.path is None else Precision.bf16)
    memory = estimate_memory(cfg, arch, layout, precision)
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    detail = ", ".join(f"{part} {getattr(memory, part) / GIB:.2f}" for part in parts)
    if memory.total < SMALL:
        return [*lines, ("memory", f"about {memory.total / 2**20:.0f} MiB at the peak in {precision.value}")]
    lines.append(("memory", f"about {memory.total / GIB:.1f} GiB per rank at the peak in {precision.value}: {detail}"))
    flops = flops_per_token(arch, cfg.seq_length, frozen_base=cfg.peft is not None)
    step_flops = flops * rows * cfg.seq_length
    lines.append(("compute", f"{flops / 1e9:.2f} GFLOP per token, {step_flops / 1e12:.1f} TFLOP per step"))
    if steps:
        hours = steps * step_flops / (PEAK_FLOPS * ASSUMED_MFU * layout.world) / 3600
        lines.append(
            ("time", f"about {hours:.2f} h on {layout.world} H100/H200 at an assumed MFU of {ASSUMED_MFU:.0%}")
        )
    return lines


def _planned_steps(cfg: SftConfig, packed: PackedSet | None) -> int | None:
    """Number of optimizer steps; None if the size of an epoch is unknown."""
    train = cfg.train
    if packed is None and train.train_samples is None and (train.train_iters is None or train.train_iters < 0):
        return None
    return total_steps(cfg.train, cfg.seq_length, train_rows(packed, cfg).rows_per_epoch if packed else 0)


def _advice(cfg: SftConfig, arch: dict[str, Any], layout: Layout, packed: PackedSet | None) -> list[str]:
    lines = []
    kept = packed.num_conversations if packed else None
    if kept is not None and kept < FEW_ROWS:
        lora = ", and peft=lora forgets less" if cfg.peft is None and cfg.model.path is not None else ""
        lines.append(
            f"{kept:,} conversations are few (under {FEW_ROWS:,}): a smaller train.global_batch_size with more "
            f"train.train_iters keeps steps useful{lora}"
        )
    if cfg.runner is Runner.train:
        lines += plan_warnings(recipe_of(cfg), arch, train_rows(packed, cfg) if packed else None)
    if cfg.runner is Runner.train and packed is not None:
        rows = train_rows(packed, cfg)
        missed = rows.unreached_sources(
            total_steps(cfg.train, cfg.seq_length, rows.rows_per_epoch) * rows_per_step(cfg.train, cfg.seq_length)
        )
        lines += [missed] if missed else []
    if cfg.seq_length > LONG_ROW and layout.cp == 1 and not is_generic(cfg, arch):
        lines.append(
            f"seq_length={cfg.seq_length} is over {LONG_ROW:,}: if a rank runs out of memory, use context parallelism "
            "(parallel.cp=2 or more)"
        )
    if arch.get("model_type") == "nemotron_h" and (arch.get("num_hidden_layers") or 0) > 80 and layout.world < 32:
        lines.append(
            "full fine-tuning of Nemotron 3 Super needs about 32 GPUs: cluster.nodes=4 cluster.gpus_per_node=8 "
            "parallel.tp=8 parallel.pp=4 parallel.cp=1"
        )
    if cfg.runner is Runner.train and cfg.model.path is not None and arch.get("vocab_size"):
        lines += _memory_advice(cfg, arch, layout)
    return lines


def _memory_advice(cfg: SftConfig, arch: dict[str, Any], layout: Layout) -> list[str]:
    precision = cfg.train.precision or Precision.bf16
    needed = estimate_memory(cfg, arch, layout, precision).total / GIB
    if needed <= USABLE * cfg.cluster.gpu_memory_gib:
        return []
    helps = [f"{change} saves {saved / GIB:.1f} GiB" for change, saved in savings(cfg, arch, precision)]
    return [
        f"{needed:.0f} GiB per rank do not fit in cluster.gpu_memory_gib={cfg.cluster.gpu_memory_gib:g}: "
        f"{', '.join(helps) or 'use more nodes'}"
    ]


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
