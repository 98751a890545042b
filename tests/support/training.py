"""Training steps that run alike on one process and under any layout, and what they leave behind."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from support.generic import FAMILIES as GENERIC
from support.generic import generic
from support.packed import ARCHITECTURES, RowList, make_model, make_row

from sft_hydra.engine.loop import StepResult, TrainState, train_loop
from sft_hydra.engine.materialize import materialize_on_mesh
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.models.build import build_model
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.freeze import freeze_parameters
from sft_hydra.models.lora import add_adapters
from sft_hydra.models.quantized_linear import quantize_linears
from sft_hydra.parallel.dtensor import copy_shard_, full_tensor, local_shard
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.optim import OPTIMIZERS, Scheduler
from sft_hydra.schema.peft import LoraConfig

SEQ_LENGTH = 96
WIDE = {key: {"mamba_num_heads": 16, "n_groups": 4, "n_routed_experts": 8} for key in ("nano", "super")}
LENGTHS = [[33, 20, 27, 16], [50, 46], [96], [10, 11, 1, 1, 12, 13, 14, 34], [7, 80], [1, 60, 2], [95], [40, 8]]


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    family: str = "qwen3"
    lora: LoraConfig | None = None
    steps: int = 3
    train: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)
    lonely: bool = False  # every token goes to the first two experts
    optimizer: str = "adamw"
    weights: torch.dtype | None = None  # None: see below
    token_ids: tuple[int, ...] = ()  # new tokens

    @property
    def dtype(self) -> torch.dtype:
        """fp64 where all layers compute in the dtype of their weights: rounding, in which layouts differ, is then far
        below what a mistake makes. Nemotron-H's scan and router are fp32, and so are norms of transformers' models."""
        usual = torch.float32 if self.family in ("nano", "super", *GENERIC) else torch.float64
        return self.weights or usual


@dataclass
class Outcome:
    """Of one rank: results of all steps, gradients after the first, parameters and buffers after the last (whole, this stage's)."""

    results: list[StepResult]
    gradients: dict[str, torch.Tensor]
    parameters: dict[str, torch.Tensor]


def training_rows() -> RowList:
    """Rows of uneven conversations; one of them trains nothing, one only its last tokens."""
    rows = RowList(make_row(LENGTHS[i % len(LENGTHS)], seed=i) for i in range(40))
    rows[2].loss_mask[:] = 0
    rows[3].loss_mask[:-4] = 0
    return rows


def make_cfg(case: Case) -> SftConfig:
    cfg = SftConfig(
        model=ModelConfig(name="test"),
        seq_length=SEQ_LENGTH,
        optimizer=OPTIMIZERS[case.optimizer](lr=1e-3, weight_decay=0.1),
        scheduler=Scheduler(kind="constant"),
        peft=case.lora,
    )
    cfg.train = dataclasses.replace(
        cfg.train, **{"global_batch_size": 4, "train_iters": case.steps, "clip_grad": None} | case.train
    )
    return cfg


def placed_model(case: Case, cfg: SftConfig, layout: Layout) -> DecoderModel:
    """The case's model under a layout, with the weights of the one that `make_model` makes."""
    if case.family in GENERIC:
        architecture = {"model_type": case.family, **GENERIC[case.family]}
        whole: DecoderModel = generic(case.family)
    else:
        architecture = ARCHITECTURES[case.family] | WIDE.get(case.family, {}) | case.architecture
        whole = make_model(architecture)
    model = build_model(architecture, "meta", torch.float32)
    if case.lora is not None:
        add_adapters(whole, case.lora, case.token_ids)
        if case.lora.quantize_base:
            quantize_linears(model, case.lora.quantize_base)
        add_adapters(model, case.lora, case.token_ids)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in whole.named_parameters():
                if parameter.requires_grad or name.endswith("_start"):
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    if cfg.train.freeze or cfg.train.trainable:
        freeze_parameters(model, cfg.train.freeze, cfg.train.trainable)
    if case.lonely:
        for correction in whole.buffers():
            correction.copy_(torch.tensor([9.0, 9.0] + [0.0] * (len(correction) - 2)))
    whole.to(case.dtype)
    model.to(case.dtype)
    materialize_on_mesh(model, cfg.train, layout, torch.device("cpu"))
    values = whole.state_dict()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if quantized := model.quantized.get(name):
            quantized.fill(tensor, values[name][quantized.needed(local_shard(tensor)[1])])
        else:
            copy_shard_(tensor, values[name])
    return model


def train(case: Case, layout: Layout) -> Outcome:
    """Three steps, or as many as the case says."""
    cfg = make_cfg(case)
    model = placed_model(case, cfg, layout)
    state, results, gradients = TrainState(), [], {}

    def after_step(result: StepResult) -> None:
        results.append(result)
        if result.step == 1:
            gradients.update({n: full_tensor(p.grad) for n, p in model.named_parameters() if p.grad is not None})

    train_loop(
        model,
        build_optimizer(model, cfg.optimizer, cfg.train.precision),
        training_rows(),
        state,
        recipe_of(cfg),
        case.steps,
        after_step=after_step,
        should_stop=lambda: False,
    )
    return Outcome(results, gradients, {n: full_tensor(tensor) for n, tensor in model.state_dict().items()})
