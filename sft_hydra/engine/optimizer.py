"""Parameter groups and their optimizers: AdamW with fp32 or 8-bit state; or Muon (Keller Jordan 2024) for hidden matrices,
experts' included, with AdamW for the rest.

Learning rates in the groups are peaks; the schedule scales them each step.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sft_hydra.engine.muon import Muon
from sft_hydra.engine.precision import orthogonal_dtype
from sft_hydra.engine.weight_average import EMA, WeightAverage
from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.planning.lora_targets import TOKEN_ROWS, adapter_part
from sft_hydra.schema import optim
from sft_hydra.schema.optim import AdamW, Optimizer
from sft_hydra.schema.train import Precision

if TYPE_CHECKING:
    from sft_hydra.engine.adamw_8bit import AdamW8bit

Named = list[tuple[str, nn.Parameter]]


class OptimizerSet:
    """One or several torch optimizers over one model, used as one. Groups keep their peak learning rate as `peak_lr`."""

    def __init__(self, parts: list[torch.optim.Optimizer], eight_bit: "AdamW8bit | None" = None) -> None:
        self.parts = parts if eight_bit is None else [eight_bit, *parts]
        self._eight_bit = eight_bit
        self.average: WeightAverage | None = None
        self.rounded = 0  # local optimizer-state values that were re-quantized to 8 bit when they were loaded
        self._owner = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}
        for group in self.param_groups():
            group["peak_lr"] = group["lr"]

    @property
    def kinds(self) -> list[str]:
        """Names of the algorithms, as a checkpoint stores them, without the number of state bits."""
        return list(dict.fromkeys(type(part).__name__.removesuffix("8bit") for part in self.parts))

    def describe(self) -> str:
        """One line on every parameter group: algorithm, parameters, peak learning rate, weight decay."""
        return "; ".join(
            f"{type(part).__name__} on {group['what']}, {sum(p.numel() for p in group['params']):,} parameters, "
            f"learning rate {group['peak_lr']:g}, weight decay {group['weight_decay']:g}"
            for part in self.parts
            for group in part.param_groups
        )

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """Parameter groups of all optimizers."""
        for part in self.parts:
            yield from part.param_groups

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that are updated."""
        return list(self._owner)

    def keep_average(self, decay: float) -> None:
        """From now on, average the weights over steps."""
        self.average = WeightAverage(self.parameters(), decay)

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to its peak times `factor`."""
        for group in self.param_groups():
            group["lr"] = group["peak_lr"] * factor

    def step(self) -> None:
        for part in self.parts:
            part.step()
        if self.average is not None:
            self.average.update()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_of(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Optimizer state of one parameter, empty before the first step, with its average if there is one."""
        state = self._owner[parameter].state.get(parameter, {})
        return state if self.average is None else {**state, EMA: self.average.values[parameter]}

    def new_moment(self, parameter: nn.Parameter, kind: str) -> torch.Tensor:
        """A zero state tensor (`kind`, as `exp_avg`) for a parameter, sharded as the parameter."""
        if kind != EMA and self._eight_bit is not None and self._owner[parameter] is self._eight_bit:
            return self._eight_bit.new_moment(parameter, kind)
        return torch.zeros_like(parameter)

    def set_state(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        """Restore the state that `state_of` returned; without an average in it, the average is the weights as they are."""
        average = state.pop(EMA, parameter)
        if self.average is not None:
            self.average.start(parameter, average)
        self._owner[parameter].state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def build_optimizer(
    model: DecoderModel, optimizer: optim.Optimizer, precision: Precision | None = None
) -> OptimizerSet:
    """`optimizer` (the config's section) over all parameters that require a gradient; `precision`: train.precision, which Muon
    computes in."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if isinstance(optimizer, AdamW) and optimizer.state_bits == 8:
        return _in_eight_bits(named, optimizer, model)
    if not isinstance(optimizer, optim.Muon):
        return OptimizerSet([_adamw(_with_lora_plus(named, optimizer), optimizer, model.embedding_name)])
    embedding = [(name, p) for name, p in named if _is_embedding(name, model.embedding_name)]
    head = [(name, p) for name, p in named if name == model.head_name != model.embedding_name]
    others = {name for name, _ in (*embedding, *head)}
    hidden = [(name, p) for name, p in named if name not in others]
    matrices = [p for _, p in hidden if p.ndim == 2]
    stacks = [p for name, p in hidden if _is_stack(name, p)]
    rest = [(name, p) for name, p in hidden if p.ndim != 2 and not _is_stack(name, p)]
    parts: list[torch.optim.Optimizer] = []
    groups = [("hidden matrices", matrices), ("experts' matrices", stacks)]
    if by_muon := [_group(what, parameters) for what, parameters in groups if parameters]:
        dtype = orthogonal_dtype(precision, model.device, (matrices + stacks)[0].device)
        parts.append(Muon(by_muon, **_muon(optimizer), dtype=dtype))
    if embedding or head or rest:
        embedding_lr = optimizer.lr if optimizer.embedding_lr is None else optimizer.embedding_lr
        head_lr = optimizer.lr if optimizer.unembedding_lr is None else optimizer.unembedding_lr
        with_lr = [(optimizer.lr, rest), (embedding_lr, embedding), (head_lr, head)]
        parts.append(_adamw(with_lr, optimizer, model.embedding_name))
    return OptimizerSet(parts)


def _is_stack(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is (experts, rows, columns), a matrix for every expert (Mamba's convolution has three dimensions too)."""
    return parameter.ndim == 3 and ".experts." in name


def _is_embedding(name: str, embedding: str) -> bool:
    """Whether it is the embedding, or rows of it (or of the head) that are trained alone."""
    return name == embedding or name.endswith(TOKEN_ROWS)


def _group(label: str, parameters: list[nn.Parameter], **options: float) -> dict[str, Any]:
    return {"params": parameters, "what": label, **options}


def _muon(optimizer: optim.Muon) -> dict[str, Any]:
    return {
        "lr": optimizer.matrix_lr * optimizer.init_lr_frac,
        "weight_decay": optimizer.weight_decay,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "ns_steps": optimizer.ns_steps,
    }


def check_state_bits(optimizer: optim.Optimizer) -> None:
    """ConfigError if `optimizer.state_bits=8` and torchao is not installed."""
    if isinstance(optimizer, AdamW) and optimizer.state_bits == 8 and find_spec("torchao") is None:
        raise ConfigError("optimizer.state_bits=8 needs torchao: pip install 'torchao>=0.18' (the extra `speed`)")


def _in_eight_bits(named: Named, optimizer: AdamW, model: DecoderModel) -> OptimizerSet:
    """8-bit state for matrices that every token uses; fp32 for the rest.

    Embedding rows and experts that no token of a step uses have a zero gradient: if quantization rounds their second
    moment to zero but not the first, the update is the first moment divided by `eps`, hundreds of learning rates.
    """
    from sft_hydra.engine.adamw_8bit import AdamW8bit

    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    embeddings |= {p for name, p in named if name == model.embedding_name or name.endswith(TOKEN_ROWS)}
    dense = [(name, p) for name, p in named if p.ndim == 2 and p not in embeddings]
    others = [(name, p) for name, p in named if p.ndim != 2 or p in embeddings]
    without = [_adamw(_with_lora_plus(others, optimizer), optimizer, model.embedding_name)]
    rest = without if others or not dense else []
    with_lr = _with_lora_plus(dense, optimizer)
    eight_bit = AdamW8bit(**_adamw_options(with_lr, optimizer, model.embedding_name)) if dense else None
    return OptimizerSet(rest, eight_bit)


def _with_lora_plus(named: Named, optimizer: Optimizer) -> list[tuple[float, Named]]:
    """Parameters with their peak learning rates: LoRA+ (Hayou et al. 2024) has another one for B, and as in the peft library
    for DoRA's magnitudes."""
    ratio = optimizer.lora_plus_ratio if isinstance(optimizer, AdamW) else None
    if ratio is None:
        return [(optimizer.lr, named)]
    faster = {name for name, _ in named if (adapter_part(name) or ("", ""))[1] in ("lora_B", "lora_magnitude_vector")}
    slow, fast = ([(name, p) for name, p in named if (name in faster) is kind] for kind in (False, True))
    return [(lr, part) for lr, part in ((optimizer.lr, slow), (optimizer.lr * ratio, fast)) if part]


def _adamw(with_lr: list[tuple[float, Named]], optimizer: Optimizer, embedding: str) -> torch.optim.AdamW:
    """AdamW over parameters with their peak learning rates."""
    return torch.optim.AdamW(**_adamw_options(with_lr, optimizer, embedding), fused=True)


def _adamw_options(with_lr: list[tuple[float, Named]], optimizer: Optimizer, embedding: str) -> dict[str, Any]:
    """Separate groups for matrices, which have weight decay, and for vectors and the parameter `embedding`, which do not."""
    groups = []
    for lr, named in with_lr:
        decayed = [p for name, p in named if p.ndim > 1 and not _is_embedding(name, embedding)]
        vectors = [p for name, p in named if p.ndim == 1]
        plain = vectors + [p for name, p in named if _is_embedding(name, embedding)]
        no_decay = "vectors" if len(plain) == len(vectors) else "vectors and embedding" if vectors else "embedding"
        for label, parameters, decay in (("matrices", decayed, optimizer.weight_decay), (no_decay, plain, 0.0)):
            if parameters:
                groups.append(_group(label, parameters, lr=lr * optimizer.init_lr_frac, weight_decay=decay))
    if not groups:  # a pipeline stage may have nothing that is trained
        groups.append(_group("nothing", [], lr=optimizer.lr * optimizer.init_lr_frac, weight_decay=0.0))
    beta1, beta2 = optimizer.betas
    return {"params": groups, "betas": (beta1, beta2), "eps": optimizer.eps}
