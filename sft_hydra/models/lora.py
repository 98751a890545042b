"""LoRA (Hu et al. 2021) on selected linear layers (models/lora_layers.py); the base model is frozen.

Selects the target layers (`apply_lora` returns a coverage table; a pattern that matches nothing is an error) and merges
adapters into weights (`merged_state`).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.layers import Linear
from sft_hydra.models.lora_layers import Adapter, scale_of
from sft_hydra.models.moe import GroupedLinear
from sft_hydra.models.quantized_linear import QuantizedGroupedLinear, QuantizedLinear, whole_tensors, with_adapter
from sft_hydra.models.seeded_generator import seeded_generator
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import copy_shard_
from sft_hydra.planning.lora_targets import choose, layer_lora, usual_targets
from sft_hydra.schema.config import LoraConfig

ADAPTABLE = (Linear, nn.Linear, GroupedLinear, QuantizedLinear, QuantizedGroupedLinear)


@dataclass(frozen=True, slots=True)
class Coverage:
    """One line of the coverage table: how many layers of a kind have an adapter, out of how many."""

    kind: str  # module name with layer numbers written as *
    adapted: int
    total: int
    trainable: int  # parameters of the adapters


def apply_lora(model: DecoderModel, lora: LoraConfig, seed: int) -> list[Coverage]:
    """`add_adapters`, then `init_adapters`, for a model whose weights are loaded. Returns the coverage table."""
    coverage = add_adapters(model, lora)
    init_adapters(model, seed)
    return coverage


def add_adapters(model: DecoderModel, lora: LoraConfig) -> list[Coverage]:
    """Freeze the model and add uninitialized adapters to the selected linear layers, in place.

    Returns the coverage table. ConfigError if no layer is selected, or for a pattern without a match.
    """
    head = model.head_weight
    layers: dict[str, nn.Linear | GroupedLinear] = {}
    for name, module in model.named_modules():
        if type(module) in ADAPTABLE and module.weight is not head:
            assert isinstance(module, nn.Linear | GroupedLinear)
            layers[name] = module
    chosen = choose(list(layers), lora, usual_targets(list(layers), model.lora_targets))
    if not chosen:
        raise ConfigError(
            f"peft: no layer of this model can have a LoRA adapter (model_type {model.config.model_type}, {len(layers)} "
            "linear layers besides lm_head); use peft=null"
        )
    each = {name: layer_lora(lora, name) for name in chosen}
    model.adapter_scales = {name: scale_of(own) for name, own in each.items()}
    model.requires_grad_(False)
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent).register_module(leaf, with_adapter(layers[name], each[name]))
    return _coverage(layers, {name: own.dim for name, own in each.items()})


@torch.no_grad()
def init_adapters(model: DecoderModel, seed: int) -> None:
    """Initialize adapters so that they do not change the model: A is drawn from (seed, its name), B is zero."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            copy_shard_(
                module.lora_A, _initial_a(module.lora_A.shape, module.a_init, seeded_generator(seed, f"{name}.lora_A"))
            )
            module.lora_B.zero_()


def _initial_a(shape: torch.Size, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Initial values of A ([experts,] dim, in)."""
    values = torch.empty(shape)
    if len(shape) == 3:  # of every expert
        return torch.stack([_initial_a(expert.shape, kind, generator) for expert in values])
    if kind == "xavier":
        return nn.init.xavier_normal_(values, generator=generator)
    if kind in ("kaiming", "uniform"):
        return nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
    return values.normal_(0.0, 1 / shape[0], generator=generator)


def _coverage(layers: dict[str, nn.Linear | GroupedLinear], dims: dict[str, int]) -> list[Coverage]:
    kinds: dict[str, list[str]] = {}
    for name in layers:
        kinds.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    table = []
    for kind, names in kinds.items():
        adapted = [name for name in names if name in dims]
        trainable = sum(dims[name] * _features(layers[name]) for name in adapted)
        table.append(Coverage(kind, len(adapted), len(names), trainable))
    return table


def _features(layer: nn.Linear | GroupedLinear) -> int:
    """Input plus output features, summed over experts."""
    count = layer.num_experts if isinstance(layer, GroupedLinear) else 1
    return count * (layer.in_features + layer.out_features)


@dataclass(slots=True)
class MergeRounding:
    """What rounding to `dtype` takes from merged weights whose base is kept in `kind`: squares summed over all of them."""

    kind: str
    dtype: torch.dtype
    lost: float = 0.0
    update: float = 0.0  # of the adapters, scale * B A
    layers: int = 0

    def add(self, weight: torch.Tensor, update: torch.Tensor) -> None:
        """Count one layer: its dequantized weight and what the adapter adds, both fp32."""
        merged = weight + update
        self.lost += float((merged - merged.to(self.dtype).float()).square().sum())
        self.update += float(update.square().sum())
        self.layers += 1

    def describe(self) -> str:
        """What was lost, for people: its root mean square, relative to that of the adapters' update."""
        share = math.sqrt(self.lost / self.update) if self.update else 0.0
        return (
            f"merged into {self.layers} weights dequantized from {self.kind}, which are not the source's; rounding to "
            f"{str(self.dtype).removeprefix('torch.')} lost {100 * share:.2g} % of the adapters' update"
        )


def merge_rounding(model: DecoderModel, dtype: torch.dtype) -> MergeRounding | None:
    """What counts the rounding of a merge that is written in `dtype`; None: the base is not quantized."""
    kinds = {weight.kind for weight in model.quantized.values()}
    return MergeRounding(kinds.pop(), dtype) if kinds else None


@torch.no_grad()
def merged_tensors(model: DecoderModel, rounding: MergeRounding | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, full tensor) of the model with adapters merged, one at a time: adapted weights are copies, others share memory
    with the model; quantized weights are dequantized, and `rounding` counts what their merged ones lose. With several ranks a
    collective, see `full_tensors`: rank 0 gets the tensors, all must iterate."""
    state = model.state_dict()
    adapters = (name for names in all_gather_objects([n for n in state if is_adapter(n)], model.mesh) for name in names)
    adapted = {name.rpartition(".")[0] for name in adapters}
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in whole_tensors(model):
        layer, _, leaf = name.rpartition(".")
        if layer not in adapted or leaf == "bias":
            yield name, tensor
            continue
        parts = waiting.setdefault(layer, {})
        parts[leaf] = tensor
        if len(parts) == 3:
            merged = f"{layer}.weight"
            counted = rounding if merged in model.quantized else None
            yield merged, _merged(**waiting.pop(layer), scale=model.adapter_scales[layer], rounding=counted)


def merged_state(model: DecoderModel) -> dict[str, torch.Tensor]:
    """`merged_tensors` as a dict."""
    return dict(merged_tensors(model))


def _merged(
    weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, scale: float, rounding: MergeRounding | None
) -> torch.Tensor:
    """weight + scale * B A as a new tensor of the weight's dtype; computed in fp32."""
    base, update = weight.float(), scale * (lora_B @ lora_A)
    if rounding is not None:
        rounding.add(base, update)
    return (base + update).to(weight.dtype)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2].startswith("lora_")
