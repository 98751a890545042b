"""LoRA (Hu et al. 2021) and DoRA on selected linear layers (models/lora_layers.py, dora.py); the base model is frozen.

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
from sft_hydra.models.dora import DoraLinear, merged_dora
from sft_hydra.models.layers import Linear
from sft_hydra.models.lora_layers import Adapter, LoraGroupedLinear, LoraLinear, joined, scale_of
from sft_hydra.models.lora_start import first_factors
from sft_hydra.models.moe import GroupedLinear
from sft_hydra.models.quantized_linear import QuantizedGroupedLinear, QuantizedLinear, whole_tensors, with_adapter
from sft_hydra.models.seeded_generator import seeded_generator
from sft_hydra.models.token_rows import replaced_rows
from sft_hydra.models.token_tables import init_rows, train_tables
from sft_hydra.parallel.collectives import all_gather_objects
from sft_hydra.parallel.dtensor import copy_shard_, full_tensor
from sft_hydra.planning.lora_targets import TOKEN_ROWS, adapter_part, choose, layer_lora, usual_targets
from sft_hydra.schema.peft import LoraConfig

ADAPTABLE = (Linear, nn.Linear, GroupedLinear, QuantizedLinear, QuantizedGroupedLinear)


@dataclass(frozen=True, slots=True)
class Coverage:
    """One line of the coverage table: how many layers of a kind have an adapter, out of how many."""

    kind: str  # module name with layer numbers written as *
    adapted: int
    total: int
    trainable: int  # parameters of the adapters


def apply_lora(model: DecoderModel, lora: LoraConfig, seed: int, token_ids: tuple[int, ...] = ()) -> list[Coverage]:
    """`add_adapters`, then `init_adapters`, for a model whose weights are loaded. Returns the coverage table."""
    coverage = add_adapters(model, lora, token_ids)
    init_adapters(model, seed)
    return coverage


def add_adapters(model: DecoderModel, lora: LoraConfig, token_ids: tuple[int, ...] = ()) -> list[Coverage]:
    """Freeze the model and add uninitialized adapters to the selected linear layers, in place; make the other parameters that
    `lora` configures trainable. `token_ids`: ids of new tokens, for `trainable_new_tokens`.

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
            "linear layers besides lm_head); adapters are supported on linear layers only (not on GPT-2's Conv1D); use peft=null, "
            "with train.freeze to train a part"
        )
    each = {name: layer_lora(lora, name) for name in chosen}
    model.adapter_scales = {name: scale_of(own) for name, own in each.items()}
    model.requires_grad_(False)
    train_tables(model, lora, token_ids)
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent).register_module(leaf, _adapted(layers[name], each[name]))
    tables = [name for name, p in model.named_parameters() if p.requires_grad and adapted_table(model, name)]
    sizes = {name: model.get_parameter(name).numel() for name in tables}
    return [*_coverage(layers, each), *(Coverage(name, 1, 1, size) for name, size in sizes.items())]


def _adapted(layer: nn.Linear | GroupedLinear, lora: LoraConfig) -> nn.Module:
    if isinstance(layer, QuantizedLinear | QuantizedGroupedLinear):
        return with_adapter(layer, lora)
    if isinstance(layer, GroupedLinear):
        return LoraGroupedLinear(layer, lora)
    return DoraLinear(layer, lora) if lora.use_dora else LoraLinear(layer, lora)


@torch.no_grad()
def init_adapters(model: DecoderModel, seed: int) -> None:
    """Initialize adapters, and rows of new tokens, so that they do not change the model: A is drawn from (seed, its name), B is zero;
    DoRA's magnitudes are the norms of the weights. The weights must be loaded."""
    init_rows(model)
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            generator = seeded_generator(seed, f"{name}.lora_A")
            if module.start is not None:
                _start_from_weight(module, name, generator)
            else:
                copy_shard_(module.lora_A, _initial_a(module.lora_A.shape, module.a_init, generator))
                module.lora_B.zero_()
        if isinstance(module, DoraLinear):
            module.init_magnitude()


def _start_from_weight(module: Adapter, name: str, generator: torch.Generator) -> None:
    """Set A and B, and what is subtracted, to a part of the weight. A collective over the ranks that share the layer."""
    assert isinstance(module.weight, torch.Tensor)
    assert module.start is not None
    dim, seed = module.lora_A.shape[0], generator.initial_seed()
    a, b = first_factors(full_tensor(module.weight), module.start, dim, module.scale, name, seed)
    for parameter, values in (
        (module.lora_A, a),
        (module.lora_A_start, a),
        (module.lora_B, b),
        (module.lora_B_start, b),
    ):
        copy_shard_(parameter, values)


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


def _coverage(layers: dict[str, nn.Linear | GroupedLinear], chosen: dict[str, LoraConfig]) -> list[Coverage]:
    kinds: dict[str, list[str]] = {}
    for name in layers:
        kinds.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    table = []
    for kind, names in kinds.items():
        adapted = [name for name in names if name in chosen]
        trainable = sum(_trainable(layers[name], chosen[name]) for name in adapted)
        table.append(Coverage(kind, len(adapted), len(names), trainable))
    return table


def _trainable(layer: nn.Linear | GroupedLinear, lora: LoraConfig) -> int:
    """Parameters of a layer's adapters, of all experts."""
    count = layer.num_experts if isinstance(layer, GroupedLinear) else 1
    magnitudes = layer.out_features if lora.use_dora else 0
    return count * (lora.dim * (layer.in_features + layer.out_features) + magnitudes)


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
def merged_tensors(
    model: DecoderModel, rounding: MergeRounding | None = None, *, everywhere: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, full tensor) of the model with adapters merged, one at a time: adapted weights are copies, others share memory
    with the model; quantized weights are dequantized, and `rounding` counts what their merged ones lose. With several ranks a
    collective, see `full_tensors`: rank 0 gets the tensors, all must iterate; `everywhere`: every rank gets them."""
    state = model.state_dict()
    of_ranks = all_gather_objects([name for name in state if is_adapter(name)], model.mesh)
    parts_of: dict[str, set[str]] = {}
    for name in (name for names in of_ranks for name in names):
        layer, part = adapter_part(name) or ("", "")
        parts_of.setdefault(layer, {"weight"}).add(part)
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in whole_tensors(model, everywhere=everywhere):
        layer, leaf = adapter_part(name) or name.rpartition(".")[::2]
        if leaf not in parts_of.get(layer, ()):
            yield name, tensor
            continue
        parts = waiting.setdefault(layer, {})
        parts[leaf] = tensor
        if parts.keys() == parts_of[layer]:
            del waiting[layer]
            if TOKEN_ROWS in parts:
                yield f"{layer}.weight", replaced_rows(parts["weight"], model.token_ids, parts[TOKEN_ROWS])
                continue
            scale = model.adapter_scales[layer]
            if rounding is not None and f"{layer}.weight" in model.quantized:
                rounding.add(parts["weight"].float(), scale * (parts["lora_B"] @ parts["lora_A"]))
            yield f"{layer}.weight", merged_weight(**parts, scale=scale)


def merged_state(model: DecoderModel) -> dict[str, torch.Tensor]:
    """`merged_tensors` as a dict."""
    return dict(merged_tensors(model))


def merged_weight(
    weight: torch.Tensor,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    scale: float,
    lora_magnitude_vector: torch.Tensor | None = None,
    lora_A_start: torch.Tensor | None = None,
    lora_B_start: torch.Tensor | None = None,
) -> torch.Tensor:
    """weight + scale * B A, less what A and B started as, with DoRA its rows scaled to the magnitudes, as a new tensor of the weight's dtype; computed in
    fp32."""
    lora_A, lora_B = joined(lora_A, lora_B, lora_A_start, lora_B_start)
    if lora_magnitude_vector is not None:
        return merged_dora(weight, lora_A, lora_B, scale, lora_magnitude_vector)
    return (weight.float() + scale * (lora_B @ lora_A)).to(weight.dtype)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter, and not to the base."""
    return adapter_part(name) is not None


def is_of_base(name: str) -> bool:
    """Whether a parameter of this name belongs to the base."""
    return adapter_part(name) is None


def adapted_table(model: DecoderModel, name: str) -> bool:
    """Whether a parameter is an embedding or head that is trained beside adapters, or its trained rows."""
    return name in model.trained_whole or name.endswith(TOKEN_ROWS)


def is_saved_with_adapters(model: DecoderModel, name: str) -> bool:
    """Whether a parameter of this name is saved where adapters are saved without their base."""
    return is_adapter(name) or name in model.trained_whole
