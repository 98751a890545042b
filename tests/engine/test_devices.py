"""Training in bf16 goes where training in fp32 on a CPU goes: on a CPU, and on a GPU with all that is chosen there."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.packed import ARCHITECTURES, make_model, make_row

from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.materialize import materialize_on_mesh
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.models.build import build_model
from sft_hydra.models.lora import add_adapters, init_adapters
from sft_hydra.parallel.dtensor import copy_shard_
from sft_hydra.parallel.rendezvous import stop_process_group
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision, Recompute

SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}  # in multiples of what kernels take
FAMILIES = ["qwen3", "mistral_window", "qwen3_moe", "nano", "super"]
SELECTIVE: dict[str, Any] = {"recompute": Recompute.selective}
BF16: dict[str, Any] = {"precision": Precision.bf16}
STEPS = 4


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    stop_process_group()  # that cpu_offload starts


def losses(
    make_cfg: Any, family: str, device: str = "cpu", lora: LoraConfig | None = None, **train: Any
) -> list[float]:
    cfg = make_cfg(train=train, peft=lora)
    architecture, frozen = ARCHITECTURES[family] | SIZES, torch.bfloat16 if "precision" in train else torch.float32
    model = build_model(architecture, "meta", torch.float32 if lora is None else frozen)
    if lora is not None:
        add_adapters(model, lora)
    materialize_on_mesh(model, cfg.train, Layout(), torch.device(device))
    values = make_model(architecture).state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in values:
                copy_shard_(tensor, values[name].to(tensor))
    init_adapters(model, seed=0)
    rows = [make_row([5 + i, 20, 3, 1 + 2 * i, 40], seed=i % 4) for i in range(4 * STEPS)]
    found: list[float] = []
    train_loop(
        model, build_optimizer(model, cfg.optimizer, cfg.train.precision), rows, TrainState(), recipe_of(cfg), STEPS,  # type: ignore[arg-type]
        after_step=lambda result: found.append(result.loss), should_stop=lambda: False,
    )  # fmt: skip
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    return found


@pytest.mark.parametrize("lora", [None, LoraConfig(dim=8)])
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_on_a_cpu_goes_as_fp32(make_cfg: Any, family: str, lora: LoraConfig | None) -> None:
    assert losses(make_cfg, family, lora=lora, **BF16) == pytest.approx(losses(make_cfg, family, lora=lora), rel=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")  # torch.compile has advice
@pytest.mark.parametrize(
    ("family", "lora", "train"),
    [
        *((family, None, {}) for family in FAMILIES),
        *((family, LoraConfig(dim=8), {}) for family in FAMILIES),
        *((family, None, SELECTIVE) for family in ("qwen3", "qwen3_moe", "nano")),
        *((family, None, {"recompute": Recompute.full}) for family in ("qwen3", "nano")),
        *((family, None, {"compile": True}) for family in ("qwen3", "qwen3_moe", "nano")),
        ("qwen3", LoraConfig(dim=8), SELECTIVE | {"compile": True}),
        ("qwen3", None, {"cpu_offload": True}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_gpu_goes_as_a_cpu(make_cfg: Any, family: str, lora: LoraConfig | None, train: dict[str, Any]) -> None:
    expected = losses(make_cfg, family, lora=lora)
    assert losses(make_cfg, family, "cuda", lora, **BF16, **train) == pytest.approx(expected, rel=3e-2)
