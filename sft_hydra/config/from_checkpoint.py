"""Sizes and learning rates that are null in the command and taken from the checkpoint in `checkpoint.load`.

INHERITED lists the keys. After resolving, only keys for which null has its own meaning can still be null.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft_hydra.config.adapter import is_adapter_folder
from sft_hydra.errors import CheckpointError
from sft_hydra.paths import find_checkpoint, read_progress
from sft_hydra.planning.megatron_checkpoint import megatron_problem

# Key -> where a checkpoint's state.json has it.
INHERITED = {
    "seq_length": ("sizes", "seq_length"),
    "train.global_batch_size": ("sizes", "global_batch_size"),
    "train.micro_batch_size": ("sizes", "micro_batch_size"),
    "optimizer.lr": ("rates", "lr"),
    "optimizer.matrix_lr": ("rates", "matrix_lr"),
    "optimizer.embedding_lr": ("rates", "embedding_lr"),
    "optimizer.unembedding_lr": ("rates", "unembedding_lr"),
}
# For the others null has a meaning of its own; these must get a value.
USUAL = {"seq_length": 4096, "train.micro_batch_size": 1, "optimizer.lr": 1.0e-5, "optimizer.matrix_lr": 0.02}


def allow_null(schema: Any, section: str = "") -> DictConfig:
    """The schema with null allowed for the keys in INHERITED, although the dataclass declares a number."""
    node: DictConfig = OmegaConf.structured(schema)
    for key in INHERITED:
        if not key.startswith(section):
            continue
        parent, _, name = key.removeprefix(section).rpartition(".")
        holder: Any = OmegaConf.select(node, parent) if parent else node
        if name in holder:
            holder._get_node(name)._metadata.optional = True
    return node


def inherit(composed: DictConfig) -> Iterator[str]:
    """Fill keys that are null, in place. Yields a message for each that could not be filled and got its usual value."""
    open_keys = [key for key in INHERITED if _is_open(composed, key)]
    load = OmegaConf.select(composed, "checkpoint.load")
    recorded: dict[str, Any] = {}
    if open_keys and load is not None:
        try:
            recorded = read_progress(find_checkpoint(load))
        except CheckpointError as error:
            is_reported = not Path(load).expanduser().exists() or is_adapter_folder(load)
            if not is_reported and not megatron_problem("checkpoint.load", load):  # otherwise a rule reports it
                yield f"checkpoint.load={load}: {error}"
    for key in open_keys:
        section, name = INHERITED[key]
        value = recorded.get(section, {}).get(name)
        if value is not None:
            OmegaConf.update(composed, key, value)
        elif key in USUAL:
            OmegaConf.update(composed, key, USUAL[key])
            where = f"{load} does not record it" if load else "checkpoint.load is not set"
            yield f"{key}=null takes the value from checkpoint.load, but {where}; set e.g. {key}={USUAL[key]:g}"


def _is_open(composed: DictConfig, key: str) -> bool:
    section, _, name = key.rpartition(".")
    holder = OmegaConf.select(composed, section) if section else composed
    if name == "global_batch_size" and holder.global_batch_tokens is not None:
        return False
    return name in holder and not OmegaConf.is_missing(holder, name) and holder[name] is None
