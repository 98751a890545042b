"""Memory of one rank at the peak of a training step, and what would lessen it.

Owns the sum of it: what is there at the loss, inside the backward pass, at its end, and in the optimizer's step; the peak is
the largest of the four. tests/planning/test_estimate_memory.py holds it against what torch allocates.
"""

from dataclasses import dataclass, replace
from typing import Any

from sft_hydra.planning.estimate.activations import FP32, Keeping, kept_by_mixer, kept_under_selective, norm
from sft_hydra.planning.estimate.adapters import adapters_by_block
from sft_hydra.planning.estimate.parameters import expert_parameters, mixer_parameters
from sft_hydra.planning.estimate.sizes import Sizes, sizes_of
from sft_hydra.planning.layout import Layout, layout_problems
from sft_hydra.planning.stage_split import partition_layers
from sft_hydra.planning.topology import ranks_per_node, rows_per_step, run_layout
from sft_hydra.schema.config import Device, LoraConfig, Precision, Recompute, SftConfig
from sft_hydra.schema.optim import AdamW, Muon

GIB = 2**30
ALONE = Layout()
EIGHT_BITS = 1 + FP32 / 256  # bytes of a number with its share of the block's scale
EAGER_UPDATE, COMPILED_UPDATE = 53, 8  # of a number whose moments have eight bits, for as long as its weight is updated
HEAD_CHUNK_TOKENS = 1024  # rows of logits that exist at one time (kernels/loss.py)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank: the most of each part, and the most of all at one time."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int


def estimate_memory(cfg: SftConfig, arch: dict[str, Any], layout: Layout, precision: Precision) -> Memory:
    """The parts, in bytes:

    - weights: 4 for each that is trained, those that LoRA leaves alone in the precision of compute, spread over the ranks of
      FSDP; and copies to compute with: on one rank in bf16 those that layers round (of one block, if it is computed again), over
      several the embedding, the head and two blocks that FSDP has gathered (of a pipeline: the whole stage)
    - gradients: 4 for each that is trained, spread alike; over several ranks one block's before and while they are summed
    - optimizer: 8 for each (AdamW; with eight bits 2 for those that every token meets), 4 for matrices of Muon
    - activations: of one micro-batch what all blocks keep (activations.py), of a pipeline's first stage of as many
      micro-batches as it has stages; blocks that are computed again keep their input (and the outputs of products, if selective), and one of them all
    - logits: fp32 `min(tokens, 1024) x vocabulary`, two of them; the head's gradient and, on one rank in bf16, its copy

    `total` is less than their sum: logits are gone in the backward pass, and a step of one micro-batch has no gradients
    while it has all activations. Blocks that are compiled, and models of other families, are only about so.
    """
    how = _keeping(cfg, layout, precision)
    return max(
        (_of_stage(cfg, stage, layout, how) for stage in _stages(arch, layout, cfg.peft)),
        key=lambda memory: memory.total,
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    """What a rank holds of the model; all of it without a pipeline."""

    sizes: Sizes  # with the blocks of this stage
    first: bool
    last: bool
    in_flight: int  # micro-batches whose activations are there at one time
    adapters: int  # parameters of LoRA

    @property
    def tables(self) -> int:
        """Parameters of embedding and head."""
        count = self.first + self.last - (self.first and self.last and self.sizes.tied)
        return count * self.sizes.vocab * self.sizes.hidden


def _stages(arch: dict[str, Any], layout: Layout, lora: LoraConfig | None) -> list[_Stage]:
    """Cut as models/pipeline_stages.py does it. A rank with several stages is counted as one that is as large."""
    s, adapters = sizes_of(arch), adapters_by_block(arch, lora)
    if layout.pp == 1:
        return [_Stage(s, True, True, 1, sum(adapters))]
    costs = [
        float(sum(mixer_parameters(s, m) + (s.chosen * expert_parameters(s) if m == "moe" else 0) for m in mixers))
        for mixers in s.blocks
    ]
    costs[-1] += s.vocab * s.hidden
    shares = partition_layers(costs, layout.pp)
    return [
        _Stage(
            replace(s, blocks=tuple(s.blocks[i] for i in share)),
            first=number == 0,
            last=number == layout.pp - 1,
            in_flight=layout.pp - (number if layout.vp == 1 else 0),
            adapters=sum(adapters[i] for i in share),
        )
        for number, share in enumerate(shares)
    ]


def _of_stage(cfg: SftConfig, stage: _Stage, layout: Layout, how: Keeping) -> Memory:
    s, train = stage.sizes, cfg.train
    weights, learnt = _stored(stage, layout, how)
    gradients, optimizer = FP32 * learnt, _optimizer(cfg, stage, layout, learnt)
    if train.cpu_offload:
        weights = gradients = optimizer = 0
    copies, block, sums = _computed_with(stage, layout, how, train.recompute)
    tokens = cfg.seq_length * train.micro_batch_size // (layout.cp * layout.tp)
    kept, again = (tokens * size for size in _kept(stage, layout, how, train.recompute))
    logits = _logits(s, tokens, layout, how) if stage.last else 0
    earlier = gradients if -(-rows_per_step(cfg) // (layout.dp * train.micro_batch_size)) > 1 else 0
    if layout.pp > 1 and how.full:  # summed over ranks in the last micro-batch only
        earlier = FP32 * (sum(_block(s, mixers, layout) for mixers in s.blocks) + stage.tables)
    head = FP32 * s.vocab * s.hidden if how.full and stage.last else 0
    rounded = copies if layout.world == 1 else 0  # by layers, which give their copies up as gradients come
    tables = head * (2 if s.tied else earlier > 0)  # of which embedding and head have a gradient each at the end
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
        lora=0 if cfg.peft is None else cfg.peft.dim,
        on_cpu=cfg.device is Device.cpu,
        tp=layout.tp,
    )


def _stored(stage: _Stage, layout: Layout, how: Keeping) -> tuple[int, int]:
    """Bytes of the weights that a rank stores, and how many parameters it trains."""
    own = (sum(_block(stage.sizes, mixers) for mixers in stage.sizes.blocks) + stage.tables) // layout.shards
    if how.full:
        return FP32 * own, own
    adapters = stage.adapters // layout.shards
    return how.width * own + FP32 * adapters, adapters


def _block(s: Sizes, mixers: tuple[str, ...], layout: Layout = ALONE) -> int:
    """Parameters of one block that a rank computes with."""
    split = sum(mixer_parameters(s, mixer) // layout.tp for mixer in mixers if mixer != "moe")
    whole = sum(mixer_parameters(s, mixer) for mixer in mixers if mixer == "moe")
    return split + whole + mixers.count("moe") * s.experts * expert_parameters(s) // layout.ep


def _rounds(layout: Layout, how: Keeping) -> bool:
    """Whether layers themselves round the weights they compute with: those that are kept in fp32, on one rank."""
    return how.full and how.width < FP32 and layout.world == 1


def _computed_with(stage: _Stage, layout: Layout, how: Keeping, recompute: Recompute) -> tuple[int, int, int]:
    """Bytes of weights beside those that are stored: for the whole step, for one block, and gradients of one block."""
    blocks = [_block(stage.sizes, mixers, layout) for mixers in stage.sizes.blocks]
    if layout.world == 1:
        rounded = [how.width * size for size in blocks] if _rounds(layout, how) else [0]
        return (sum(rounded), 0, 0) if recompute is Recompute.none else (0, max(rounded), 0)
    tables = how.width * stage.tables
    sums = FP32 * max(blocks) if how.full else 0
    if layout.pp > 1:
        return tables + how.width * sum(blocks), 0, sums
    return tables, 2 * how.width * max(blocks), sums + (how.width * max(blocks) if how.full else 0)


def _optimizer(cfg: SftConfig, stage: _Stage, layout: Layout, learnt: int) -> int:
    """Two moments of AdamW, in fp32 or eight bits (engine/optimizer.py says which of them); one of Muon."""
    if isinstance(cfg.optimizer, AdamW) and cfg.optimizer.state_bits == 8:
        in_fp32 = 0 if cfg.peft is not None else _embedding_and_experts(stage) // layout.shards
        return 2 * FP32 * in_fp32 + int(2 * EIGHT_BITS * (learnt - in_fp32))
    if not isinstance(cfg.optimizer, Muon) or cfg.peft is not None:
        return 2 * FP32 * learnt
    return 2 * FP32 * learnt - FP32 * (learnt - stage.tables // layout.shards)


def _update(cfg: SftConfig, stage: _Stage, layout: Layout, how: Keeping) -> int:
    """Bytes between the operations of the optimizer's step, which takes weight by weight; none that counts in fp32."""
    if not isinstance(cfg.optimizer, AdamW) or cfg.optimizer.state_bits == 32 or not how.full:
        return 0
    s = stage.sizes
    widths = {"attention": s.q, "mamba": s.mamba_in, "mlp": s.inner, "moe": s.shared_inner}
    widest = max(widths[mixer] for mixers in s.blocks for mixer in mixers)
    if stage.last and not s.tied:
        widest = max(widest, s.vocab)
    return (EAGER_UPDATE if how.on_cpu else COMPILED_UPDATE) * s.hidden * widest // layout.shards


def _embedding_and_experts(stage: _Stage) -> int:
    """Parameters that not every token meets."""
    s = stage.sizes
    embedding = s.vocab * s.hidden if stage.first or (stage.last and s.tied) else 0
    return embedding + s.count("moe") * s.experts * expert_parameters(s)


def _kept(stage: _Stage, layout: Layout, how: Keeping, recompute: Recompute) -> tuple[int, int]:
    """Bytes a token that are kept of all blocks, and of the block that is computed again."""
    s = stage.sizes
    all_of = [sum(kept_by_mixer(s, mixer, how) for mixer in mixers) for mixers in s.blocks]
    kept, again = sum(all_of), 0
    if recompute is not Recompute.none:
        kept, again = len(all_of) * how.width * s.hidden, max(all_of)
    if recompute is Recompute.selective:
        kept += sum(kept_under_selective(s, mixer, how) for mixers in s.blocks for mixer in mixers)
    rotary = 0 if s.mamba_heads else 2 * FP32 * s.head_dim * layout.tp
    last = norm(s.hidden, how) + 2 * how.width * s.hidden if stage.last else 0
    return stage.in_flight * (kept + rotary) + last, again


def _logits(s: Sizes, tokens: int, layout: Layout, how: Keeping) -> int:
    chunk = min(tokens, HEAD_CHUNK_TOKENS)
    table = s.vocab * s.hidden
    copy = how.width * table if _rounds(layout, how) else 0
    return FP32 * 2 * chunk * s.vocab + (FP32 * table if how.full else 0) + copy


def savings(cfg: SftConfig, arch: dict[str, Any], precision: Precision) -> list[tuple[str, int]]:
    """(what to set, bytes that it saves a rank) of each change that would help, by the estimate; what helps most first."""
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
