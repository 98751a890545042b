"""Peak memory of one rank in a training step, and settings that reduce it.

The peak is the maximum over four points in time: the loss, within the backward pass, the end of the backward pass, and the
optimizer step. tests/planning/test_estimate_memory.py compares it with what torch allocates.
"""

from dataclasses import dataclass, replace
from typing import Any

from sft_hydra.planning.estimate.activations import FP32, Keeping, kept_by_mixer, kept_under_selective, norm
from sft_hydra.planning.estimate.adapters import adapters_by_block, table_parameters
from sft_hydra.planning.estimate.parameters import (
    expert_parameters,
    largest_linear,
    linear_parameters,
    mixer_parameters,
)
from sft_hydra.planning.estimate.sizes import Sizes, sizes_of
from sft_hydra.planning.estimate.trained import Frozen, frozen_parameters
from sft_hydra.planning.layout import Layout, layout_problems
from sft_hydra.planning.lora_targets import starts_from_weight
from sft_hydra.planning.stage_split import partition_layers
from sft_hydra.planning.topology import ranks_per_node, rows_per_step, run_layout
from sft_hydra.schema.config import Device, SftConfig
from sft_hydra.schema.optim import AdamW, Muon
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision, Recompute

GIB = 2**30
ALONE = Layout()
EIGHT_BITS = 1 + FP32 / 256  # bytes per element with its part of the block's scale
EAGER_UPDATE, COMPILED_UPDATE = 53, 8  # temporary bytes per element of a weight while its 8-bit state is updated
QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + FP32 / (64 * 256), "int8": 1.0}  # of a weight with its part of the scales
DEQUANTIZING = {"nf4": 0, "int8": FP32}  # further bytes of a weight while it is dequantized
HEAD_CHUNK_TOKENS = 1024  # tokens whose logits exist at the same time (kernels/loss.py)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank: the maximum of each part, and the maximum of their sum at one time (`total`)."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int


def estimate_memory(cfg: SftConfig, arch: dict[str, Any], layout: Layout, precision: Precision) -> Memory:
    """Peak memory of the pipeline stage that needs most. The parts, in bytes:

    - weights: 4 per trainable parameter, frozen ones in the compute dtype (of quantized linear layers 0.52 with nf4, 1 with
      int8, and the largest of them dequantized), sharded by FSDP; plus copies for compute: on one
      rank in bf16 the weights cast by layers (of one block with activation checkpointing), with several ranks the embedding,
      lm_head and two all-gathered blocks (with a pipeline: the full stage)
    - gradients: 4 per trainable parameter (not those that `train.freeze` freezes), sharded like weights; with several ranks one
      block's gradients before and during the reduce-scatter
    - optimizer: 8 per trainable parameter (AdamW; with 8-bit state 2 for matrices that every token uses), 4 for Muon's
    - activations: what all blocks save for one micro-batch (activations.py); on the first pipeline stage for as many
      micro-batches as there are stages; checkpointed blocks save their input (selective: also matrix-product outputs), and
      one of them everything while it is recomputed
    - logits: two of fp32 `min(tokens, 1024) x vocabulary`; the head's gradient and, on one rank in bf16, its copy

    `total` is less than the sum: logits are freed before the backward pass, and a step of one micro-batch has no gradients
    while all activations exist. For compiled blocks and families of `model=hf` it is approximate.
    """
    how = _keeping(cfg, layout, precision)
    return max(
        (_of_stage(cfg, stage, layout, how) for stage in _stages(arch, layout, cfg)),
        key=lambda memory: memory.total,
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    """The part of the model on a rank; all of it without pipeline parallelism."""

    sizes: Sizes  # with the blocks of this stage
    first: bool
    last: bool
    in_flight: int  # micro-batches whose activations are there at one time
    adapters: int  # parameters of LoRA
    frozen: Frozen  # in full fine-tuning; of this stage's blocks
    trained_tables: int = 0  # parameters of embedding and head that are trained beside LoRA
    trained_rows: int = 0  # the same of rows of them, which are stored beside their table
    trained_head: bool = False  # the head, or rows of it, is trained beside LoRA

    @property
    def tables(self) -> int:
        """Parameters of embedding and head."""
        count = self.first + self.last - (self.first and self.last and self.sizes.tied)
        return count * self.sizes.vocab * self.sizes.hidden

    @property
    def not_trained(self) -> int:
        """Parameters without a gradient in full fine-tuning."""
        table = self.sizes.vocab * self.sizes.hidden
        separate = self.last and self.frozen.head and not (self.first and self.sizes.tied)
        return sum(self.frozen.blocks) + table * ((self.first and self.frozen.embedding) + separate)


def _stages(arch: dict[str, Any], layout: Layout, cfg: SftConfig) -> list[_Stage]:
    """Cut as models/pipeline_stages.py does it. A rank with several stages is counted as one that is as large."""
    s, adapters = sizes_of(arch), adapters_by_block(arch, cfg.peft)
    frozen = frozen_parameters(arch, cfg.train)
    if layout.pp == 1:
        return [_with_tables(_Stage(s, True, True, 1, sum(adapters), frozen), arch, cfg)]
    costs = [
        float(sum(mixer_parameters(s, m) + (s.chosen * expert_parameters(s) if m == "moe" else 0) for m in mixers))
        for mixers in s.blocks
    ]
    costs[-1] += s.vocab * s.hidden
    shares = partition_layers(costs, layout.pp)
    stages = [
        _Stage(
            replace(s, blocks=tuple(s.blocks[i] for i in share)),
            first=number == 0,
            last=number == layout.pp - 1,
            in_flight=layout.pp - (number if layout.vp == 1 else 0),
            adapters=sum(adapters[i] for i in share),
            frozen=replace(frozen, blocks=tuple(frozen.blocks[i] for i in share)),
        )
        for number, share in enumerate(shares)
    ]
    return [_with_tables(stage, arch, cfg) for stage in stages]


def _with_tables(stage: _Stage, arch: dict[str, Any], cfg: SftConfig) -> _Stage:
    """The stage, with the parts of its embedding and head that are trained beside LoRA."""
    lora = cfg.peft
    if lora is None:
        return stage
    embedding, head = table_parameters(arch, lora, cfg.tokenizer.num_new_tokens)
    tied = stage.sizes.tied
    own = embedding * (stage.first or (tied and stage.last)) + head * stage.last
    trained_head = stage.last and bool(embedding if tied else head)
    if lora.trainable_new_tokens:
        return replace(stage, trained_head=trained_head, trained_rows=own)
    return replace(stage, trained_head=trained_head, trained_tables=own)


def _of_stage(cfg: SftConfig, stage: _Stage, layout: Layout, how: Keeping) -> Memory:
    s, train = stage.sizes, cfg.train
    weights, trainable = _stored(stage, layout, how)
    gradients, optimizer = FP32 * trainable, _optimizer(cfg, stage, layout, trainable)
    if train.cpu_offload:
        weights = gradients = optimizer = 0
    copies, block, sums = _computed_with(stage, layout, how, train.recompute)
    block += _dequantized(cfg, stage, layout, how)
    tokens = cfg.seq_length * train.micro_batch_size // (layout.cp * layout.tp)
    kept, again = (tokens * size for size in _kept(stage, layout, how, train.recompute))
    logits = _logits(stage, tokens, layout, how) if stage.last else 0
    earlier = (
        gradients if -(-rows_per_step(cfg.train, cfg.seq_length) // (layout.dp * train.micro_batch_size)) > 1 else 0
    )
    if layout.pp > 1 and how.full:  # summed over ranks in the last micro-batch only
        earlier = FP32 * (sum(_block(s, mixers, layout) for mixers in s.blocks) + stage.tables)
    whole = how.full and stage.last and not stage.frozen.head
    head = FP32 * s.vocab * s.hidden if whole or stage.trained_head else 0
    rounded = copies if layout.world == 1 else 0  # casts by layers, freed as gradients are computed
    tables = head * (2 if s.tied else earlier > 0)  # gradients of embedding and lm_head at the end
    peaks = (
        kept + logits + earlier,
        kept + again + head + block + sums + earlier,
        max(gradients, earlier) + tables + block + sums - rounded,
        max(gradients, earlier) + _update(cfg, stage, layout, how) - rounded,
    )
    return Memory(
        weights=weights + copies + block,
        gradients=max(gradients, earlier) + sums,
        optimizer=optimizer,
        activations=kept + again,
        logits=logits,
        total=weights + copies + optimizer + max(peaks),
    )


def _keeping(cfg: SftConfig, layout: Layout, precision: Precision) -> Keeping:
    width = 2 if precision is Precision.bf16 else FP32
    full = cfg.peft is None
    return Keeping(
        width=width,
        full=full,
        lora=0 if cfg.peft is None else cfg.peft.dim * (2 if starts_from_weight(cfg.peft) else 1),
        starts=cfg.peft is not None and starts_from_weight(cfg.peft),
        dora=cfg.peft is not None and cfg.peft.use_dora,
        on_cpu=cfg.device is Device.cpu,
        tp=layout.tp,
        quantized=QUANTIZED_BYTES.get(cfg.peft.quantize_base or "") if cfg.peft is not None else None,
    )


def _stored(stage: _Stage, layout: Layout, how: Keeping) -> tuple[int, int]:
    """(bytes of the weights stored on a rank, number of trainable parameters of its shard)."""
    local = (sum(_block(stage.sizes, mixers) for mixers in stage.sizes.blocks) + stage.tables) // layout.shards
    if how.full:
        return FP32 * local, local - stage.not_trained // layout.shards
    trained = (stage.adapters + stage.trained_tables + stage.trained_rows) // layout.shards
    frozen = local - stage.trained_tables // layout.shards
    saved = _saved_by_quantizing(stage.sizes, stage.sizes.blocks, how) // layout.shards
    starts = stage.adapters // layout.shards if how.starts else 0  # what A and B started as
    return how.width * frozen - saved + FP32 * (trained + starts), trained


def _saved_by_quantizing(s: Sizes, blocks: tuple[tuple[str, ...], ...], how: Keeping, ep: int = 1) -> int:
    """Bytes that the weights of linear layers in these blocks need less than in the compute dtype."""
    if how.quantized is None:
        return 0
    mixers = [mixer for block in blocks for mixer in block]
    linear = sum(linear_parameters(s, mixer) for mixer in mixers)
    experts = mixers.count("moe") * s.experts * expert_parameters(s) // ep
    return int((how.width - how.quantized) * (linear + experts))


def _dequantized(cfg: SftConfig, stage: _Stage, layout: Layout, how: Keeping) -> int:
    """Bytes of the largest weight in the compute dtype, which a product with a quantized one makes."""
    if cfg.peft is None or cfg.peft.quantize_base is None:
        return 0
    s = stage.sizes
    largest = max(largest_linear(s, mixer, layout.ep) for mixers in s.blocks for mixer in mixers)
    return (how.width + DEQUANTIZING[cfg.peft.quantize_base]) * largest


def _block(s: Sizes, mixers: tuple[str, ...], layout: Layout = ALONE) -> int:
    """Parameters of one block on a rank, all-gathered over FSDP, split over tp and ep."""
    split = sum(mixer_parameters(s, mixer) // layout.tp for mixer in mixers if mixer != "moe")
    replicated = sum(mixer_parameters(s, mixer) for mixer in mixers if mixer == "moe")
    return split + replicated + mixers.count("moe") * s.experts * expert_parameters(s) // layout.ep


def _rounds(layout: Layout, how: Keeping) -> bool:
    """Whether layers cast fp32 weights to the compute dtype: in full fine-tuning on one rank (FSDP casts otherwise)."""
    return how.full and how.width < FP32 and layout.world == 1


def _computed_with(stage: _Stage, layout: Layout, how: Keeping, recompute: Recompute) -> tuple[int, int, int]:
    """Bytes of temporary weights for the full step, of temporary weights of one block, and of gradients of one block."""
    s = stage.sizes
    blocks = [_block(s, mixers, layout) for mixers in s.blocks]
    gathered = [
        how.width * size - _saved_by_quantizing(s, (mixers,), how, layout.ep)
        for size, mixers in zip(blocks, s.blocks, strict=True)
    ]
    if layout.world == 1:
        rounded = [how.width * size for size in blocks] if _rounds(layout, how) else [0]
        return (sum(rounded), 0, 0) if recompute is Recompute.none else (0, max(rounded), 0)
    tables = how.width * stage.tables
    sums = FP32 * max(blocks) if how.full else 0
    if layout.pp > 1:
        return tables + sum(gathered), 0, sums
    return tables, 2 * max(gathered), sums + (how.width * max(blocks) if how.full else 0)


def _optimizer(cfg: SftConfig, stage: _Stage, layout: Layout, trainable: int) -> int:
    """Bytes of optimizer state: two moments with AdamW, in fp32 or 8 bit (see engine/optimizer.py); one with Muon. The average
    of the weights counts as another."""
    average = 0 if cfg.train.ema_decay is None else FP32 * trainable
    return average + _moments(cfg, stage, layout, trainable)


def _moments(cfg: SftConfig, stage: _Stage, layout: Layout, trainable: int) -> int:
    if isinstance(cfg.optimizer, AdamW) and cfg.optimizer.state_bits == 8:
        in_fp32 = 0 if cfg.peft is not None else min(trainable, _embedding_and_experts(stage) // layout.shards)
        return 2 * FP32 * in_fp32 + int(2 * EIGHT_BITS * (trainable - in_fp32))
    if not isinstance(cfg.optimizer, Muon) or cfg.peft is not None:
        return 2 * FP32 * trainable
    return 2 * FP32 * trainable - FP32 * max(0, trainable - stage.tables // layout.shards)


def _update(cfg: SftConfig, stage: _Stage, layout: Layout, how: Keeping) -> int:
    """Temporary bytes of the optimizer step, which updates weight by weight; negligible with fp32 state."""
    if not isinstance(cfg.optimizer, AdamW) or cfg.optimizer.state_bits == 32 or not how.full:
        return 0
    s = stage.sizes
    widths = {"attention": s.q, "mamba": s.mamba_in, "mlp": s.inner, "moe": s.shared_inner}
    widest = max(widths[mixer] for mixers in s.blocks for mixer in mixers)
    if stage.last and not s.tied:
        widest = max(widest, s.vocab)
    return (EAGER_UPDATE if how.on_cpu else COMPILED_UPDATE) * s.hidden * widest // layout.shards


def _embedding_and_experts(stage: _Stage) -> int:
    """Number of parameters that not every token uses."""
    s = stage.sizes
    embedding = s.vocab * s.hidden if stage.first or (stage.last and s.tied) else 0
    return embedding + s.count("moe") * s.experts * expert_parameters(s)


def _kept(stage: _Stage, layout: Layout, how: Keeping, recompute: Recompute) -> tuple[int, int]:
    """Bytes per token saved by all blocks, and by the block that is being recomputed."""
    s = stage.sizes
    blocks = s.blocks[stage.frozen.leading if stage.first else 0 :]  # others save nothing
    all_of = [sum(kept_by_mixer(s, mixer, how) for mixer in mixers) for mixers in blocks] or [0]
    kept, again = sum(all_of), 0
    if recompute is not Recompute.none:
        kept, again = len(all_of) * how.width * s.hidden, max(all_of)
    if recompute is Recompute.selective:
        kept += sum(kept_under_selective(s, mixer, how) for mixers in blocks for mixer in mixers)
    rotary = 0 if s.mamba_heads else 2 * FP32 * s.head_dim * layout.tp
    last = norm(s.hidden, how) + 2 * how.width * s.hidden if stage.last else 0
    return stage.in_flight * (kept + rotary) + last, again


def _logits(stage: _Stage, tokens: int, layout: Layout, how: Keeping) -> int:
    s = stage.sizes
    chunk = min(tokens, HEAD_CHUNK_TOKENS)
    table = s.vocab * s.hidden
    copy = how.width * table if _rounds(layout, how) or stage.trained_head else 0
    return FP32 * 2 * chunk * s.vocab + (FP32 * table if how.full or stage.trained_head else 0) + copy


def savings(cfg: SftConfig, arch: dict[str, Any], precision: Precision) -> list[tuple[str, int]]:
    """(setting, bytes saved per rank) for each change that reduces the estimate by over 1 %, largest saving first."""
    train, gpus = cfg.train, 2 * ranks_per_node(cfg)
    changes: dict[str, SftConfig] = {
        f"cluster.gpus_per_node={gpus}": replace(cfg, cluster=replace(cfg.cluster, gpus_per_node=gpus)),
        f"seq_length={cfg.seq_length // 2}": replace(cfg, seq_length=cfg.seq_length // 2),
    }
    if train.micro_batch_size > 1:
        half = train.micro_batch_size // 2
        changes[f"train.micro_batch_size={half}"] = replace(cfg, train=replace(train, micro_batch_size=half))
    if train.recompute is not Recompute.full:
        changes["train.recompute=full"] = replace(cfg, train=replace(train, recompute=Recompute.full))
    if isinstance(cfg.optimizer, AdamW) and not train.cpu_offload:
        changes["optimizer.state_bits=8"] = replace(cfg, optimizer=replace(cfg.optimizer, state_bits=8))
    if cfg.peft is None:
        changes["peft=lora"] = replace(cfg, peft=LoraConfig())
    elif cfg.peft.quantize_base is None and run_layout(cfg, arch).tp == 1:
        changes["peft.quantize_base=nf4"] = replace(cfg, peft=replace(cfg.peft, quantize_base="nf4"))
    now = estimate_memory(cfg, arch, run_layout(cfg, arch), precision).total
    found = []
    for text, changed in changes.items():
        layout = run_layout(changed, arch)
        if any(layout_problems(layout, arch, changed.seq_length)):
            continue
        saved = now - estimate_memory(changed, arch, layout, precision).total
        if saved > now / 100:
            found.append((text, saved))
    return sorted(found, key=lambda change: -change[1])
