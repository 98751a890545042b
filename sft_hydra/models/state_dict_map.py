"""Maps our parameters to the tensors in Hugging Face's files and back.

Llama-like families are identical. Differences of the others: routed experts are one stacked tensor here and one tensor per
expert on disk; rows of Mamba's in_proj and conv1d are ordered by group here and by kind on disk; Nemotron-H names its trunk
`backbone` and has no module for the scan parameters. Families of `model=hf` use transformers' module names; if their files
use others, transformers' conversion table maps them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch

from sft_hydra.planning.architecture import FAMILIES

Ranges = tuple[tuple[int, int], ...]
TRUNK = {"model.embed_tokens.": "backbone.embeddings.", "model.norm.": "backbone.norm_f.", "model.": "backbone."}


@dataclass(frozen=True, slots=True)
class Stored:
    """Location of one of our parameters on disk.

    One tensor, possibly with its rows in another order (`rows`: row ranges on disk, in our order); or the matrices of
    `experts` experts, each of one tensor or of several that are concatenated along our rows.
    """

    names: tuple[str, ...]
    rows: Ranges | None = None
    experts: int | None = None


def stored(config: Any, name: str, shape: torch.Size) -> Stored:
    """Location on disk of parameter `name` with this (full) shape."""
    disk = hf_name(config, name)
    if ".experts." not in name:
        return Stored((disk,), disk_rows(config, name))
    prefix, kind, _ = disk.rsplit(".", 2)
    kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
    names = tuple(f"{prefix}.{expert}.{kind}.weight" for expert in range(shape[0]) for kind in kinds)
    return Stored(names, experts=shape[0])


def hf_name(config: Any, name: str) -> str:
    """The name on disk of a parameter that is a single tensor on disk."""
    if config.model_type == "nemotron_h":
        name = name.replace(".ssm.", ".")
        for our_prefix, hf_prefix in TRUNK.items():
            if name.startswith(our_prefix):
                return hf_prefix + name.removeprefix(our_prefix)
    if config.model_type not in FAMILIES:
        for step in reversed(conversions(config.model_type)):
            name, _ = step.reverse_transform().rename_source_key(name)
    return name


@cache
def conversions(family: str) -> tuple[Any, ...]:
    """The conversions that transformers applies to names and tensors of a family's files on load, in order."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    of_class = get_checkpoint_conversion_mapping(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    return tuple(of_class or get_checkpoint_conversion_mapping(family) or ())


def only_renamed(family: str) -> bool:
    """Whether transformers loads this family's tensors unchanged, at most under other names."""
    from transformers.core_model_loading import WeightRenaming

    return all(type(step) is WeightRenaming for step in conversions(family))


def disk_rows(config: Any, name: str) -> Ranges | None:
    """Row ranges on disk, in our order, of a parameter whose row order differs; None if it is the same."""
    layer = name.split(".")[-2]
    if config.model_type != "nemotron_h" or layer not in ("in_proj", "conv1d") or name.endswith("lora_A"):
        return None
    inner = config.mamba_num_heads * config.mamba_head_dim
    states = config.n_groups * config.ssm_state_size
    sizes = [inner, states, states]  # x, B, C
    if layer == "in_proj":
        sizes = [inner, *sizes, config.mamba_num_heads]  # z before and dt after them
    groups = config.n_groups
    starts = [0, *accumulate(sizes)]
    return tuple(
        (start + group * size // groups, start + (group + 1) * size // groups)
        for group in range(groups)
        for start, size in zip(starts, sizes, strict=False)
    )


def ignorable(config: Any, name: str) -> bool:
    """Whether a tensor on disk has no parameter in the model and may be skipped."""
    if name.endswith("rotary_emb.inv_freq"):
        return True  # computed from the config
    return carried(config, name) or (name == "lm_head.weight" and config.tie_word_embeddings)


def carried(config: Any, name: str) -> bool:
    """Whether a tensor on disk is not trained but copied into exports: multi-token prediction heads."""
    return config.model_type == "nemotron_h" and name.startswith("mtp.")


def shape_on_disk(place: Stored, get: Callable[[str], Any]) -> tuple[int, ...]:
    """The shape of our parameter; `get(name)` returns a safetensors slice with `get_shape()`."""
    shape = tuple(get(place.names[0]).get_shape())
    if place.experts is None:
        return shape
    each = place.names[: len(place.names) // place.experts]
    return place.experts, sum(get(name).get_shape()[0] for name in each), shape[1]


def from_disk(place: Stored, get: Callable[[str], Any], where: tuple[slice, ...]) -> torch.Tensor:
    """The slices `where` of our parameter; only these parts are read from disk."""
    if place.experts is not None:
        each = len(place.names) // place.experts
        experts = [place.names[i * each : (i + 1) * each] for i in range(where[0].start, where[0].stop)]
        return torch.stack([torch.cat([get(name)[:] for name in names])[where[1:]] for names in experts])
    tensor = get(place.names[0])
    if place.rows is None:
        return tensor[where]
    return torch.cat([tensor[rows, *where[1:]] for rows in _rows_of(place.rows, where[0])])


def _rows_of(ranges: Ranges, wanted: slice) -> Iterator[slice]:
    """Row slices on disk for the rows `wanted` in our order."""
    begin = 0
    for start, stop in ranges:
        first, last = max(wanted.start, begin), min(wanted.stop, begin + stop - start)
        if first < last:
            yield slice(start + first - begin, start + last - begin)
        begin += stop - start


def to_disk(config: Any, state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) as in Hugging Face's files, in the order of `state`; tensors share memory with `state` if equal."""
    for name, tensor in state.items():
        place = stored(config, name, tensor.shape)
        if place.experts is not None:
            matrices = [part for expert in tensor for part in expert.chunk(len(place.names) // place.experts)]
            yield from zip(place.names, matrices, strict=True)
        else:
            yield place.names[0], tensor if place.rows is None else rows_to_disk(tensor, place.rows)


def rows_from_disk(tensor: torch.Tensor, rows: Ranges) -> torch.Tensor:
    """A tensor from disk with its rows in our order."""
    return torch.cat([tensor[start:stop] for start, stop in rows])


def rows_to_disk(tensor: torch.Tensor, rows: Ranges) -> torch.Tensor:
    """One of our tensors with its rows in the order on disk."""
    ordered = torch.empty_like(tensor)
    for (start, stop), part in zip(rows, tensor.split([stop - start for start, stop in rows]), strict=True):
        ordered[start:stop] = part
    return ordered
