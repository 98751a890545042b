"""Optimizer state in a checkpoint: in fp32, or as 8-bit codes with block scales.

It is restored bit for bit if the quantization blocks have the same layout. With another layout or another number of bits, it
is re-quantized, and the number of such values is reported.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sft_hydra.checkpoint.sharded_tensors import ShardFiles, ShardRecord, shard_record
from sft_hydra.engine.optimizer import OptimizerSet
from sft_hydra.errors import CheckpointError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import local_shard

CODES, SCALE = ".codes", ".scale"


def optimizer_shards(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, ShardRecord]]:
    """(name in the checkpoint, local shard) of a weight or optimizer-state tensor; shares its memory."""
    part = shard_record(tensor)
    if not is_eight_bit(tensor):
        yield name, part
        return
    codes, scale = part.values.codes, part.values.scale  # type: ignore[attr-defined]
    yield name + CODES, ShardRecord(codes, part.start, part.whole)
    yield name + SCALE, ShardRecord(scale, part.start, part.whole, sizes=tuple(codes.shape))


def is_eight_bit(tensor: torch.Tensor) -> bool:
    """Whether the local shard is 8-bit codes with scales (torchao's wrapper tensor)."""
    return is_traceable_wrapper_subclass(local_shard(tensor)[0])


def load_optimizer_state(files: ShardFiles, model: DecoderModel, optimizer: OptimizerSet) -> int:
    """Load the optimizer state. Returns the number of values that this rank re-quantized to 8 bits. CheckpointError if it belongs
    to other parameters.

    State tensors have the shape and sharding of their parameter; those of another shape are replicated.
    """
    kinds: dict[str, set[str]] = {}
    for key in files.shapes:
        name, _, kind = key.removesuffix(CODES).removesuffix(SCALE).rpartition("/")
        kinds.setdefault(name, set()).add(kind)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    everywhere = {name for names in all_gather_objects(list(trained), model.mesh) for name in names}
    if kinds and kinds.keys() != everywhere:
        raise CheckpointError(
            f"{files.folder} has optimizer state of other parameters than this run trains: "
            f"{', '.join(sorted(kinds.keys() ^ everywhere)[:5])}"
        )
    if any(key.endswith(CODES) for key in files.shapes) and find_spec("torchao") is None:
        raise CheckpointError(
            f"{files.folder} has optimizer state in 8 bits, which needs torchao: "
            "pip install 'torchao>=0.18' (the extra `speed`)"
        )
    rounded = 0
    for name, parameter in trained.items():
        state = {}
        for kind in sorted(kinds.get(name, ())):
            shape = files.shapes.get(f"{name}/{kind}", tuple(parameter.shape))
            if shape == parameter.shape:
                state[kind] = optimizer.new_moment(parameter, kind)
                rounded += _read(files, f"{name}/{kind}", state[kind])
            else:
                state[kind] = torch.zeros(shape)
                files.read_into(f"{name}/{kind}", state[kind])
        optimizer.set_state(parameter, state)
    return rounded


def _read(files: ShardFiles, name: str, moment: torch.Tensor) -> int:
    """Fill a state tensor from saved shards in fp32 and in 8 bits."""
    mine, where = local_shard(moment)
    coded = name + CODES in files.shapes
    if not coded and not is_eight_bit(moment):
        files.read_into(name, moment)
        return 0
    from sft_hydra.engine.adamw_8bit import decoded, encode

    values, codes, scale = (
        torch.zeros(mine.shape, dtype=dtype, device=mine.device)
        for dtype in (torch.float32, torch.uint8, torch.float32)
    )
    found = files.fill(name, values, where) if name in files.shapes else 0
    if coded:
        found += files.fill(name + CODES, codes, where)
        files.fill(name + SCALE, scale, where)
        values = torch.where(scale > 0, decoded(codes, scale, name.rpartition("/")[2]), values)
    files.check_whole(name, values.numel() - found)
    if is_eight_bit(moment):
        return encode(mine, values, codes, scale)
    mine.copy_(values)
    return 0
