"""Weights on disk that cannot be trained are named before training; other weights are told from the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.configs import make_cfg
from support.packed import ARCHITECTURES, make_model, oracle_of

from sft_hydra.checkpoint import origin
from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.checkpoint.origin import weights_key
from sft_hydra.checkpoint.state import load, save
from sft_hydra.engine.loop import TrainState
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import CheckpointError, ModelError
from sft_hydra.planning.recipe import recipe_of

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    oracle_of(make_model(ARCHITECTURES["qwen3"])).save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, weight: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {NAME: weight}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.bool])
def test_weights_that_are_not_floating_point_are_named(folder: Path, kind: torch.dtype) -> None:
    weight = load_file(folder / "model.safetensors")[NAME]
    change(folder, weight=weight.to(kind))
    with pytest.raises(ModelError, match=rf"{NAME} is \w+ on disk, not a floating-point weight"):
        load_weights(make_model(ARCHITECTURES["qwen3"]), str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    weight = load_file(folder / "model.safetensors")[NAME].clone()
    weight[3, 5] = value
    change(folder, weight=weight)
    with pytest.raises(ModelError, match=rf"{NAME} has non-finite values") as raised:
        load_weights(make_model(ARCHITECTURES["qwen3"]), str(folder))
    assert len(raised.value.problems) == 1


def test_a_checkpoint_with_numbers_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    cfg, model = make_cfg(), make_model(ARCHITECTURES["qwen3"])
    with torch.no_grad():
        model.get_parameter(NAME)[0, 0] = float("nan")
    step = save(
        tmp_path,
        model,
        build_optimizer(model, cfg.optimizer, cfg.train.precision),
        TrainState(step=1),
        recipe_of(cfg),
        cfg.checkpoint,
    )
    with pytest.raises(CheckpointError, match=rf"1 tensors have non-finite values: {NAME}"):
        load(step, make_model(ARCHITECTURES["qwen3"]), None)


def test_the_key_of_weights_follows_their_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_key(folder)
    (folder / "README.md").write_text("x")
    assert weights_key(folder) == before
    weight = load_file(folder / "model.safetensors")[NAME].clone()
    weight[-1, -1] += 1
    change(folder, weight=weight)
    assert weights_key(folder) != before
    monkeypatch.setattr(origin, "ALL_BYTES", 0)  # too large to read whole: samples of every file
    sampled = weights_key(folder)
    assert sampled == weights_key(folder) != before
    save_file(
        {name: t + 1 for name, t in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors"
    )
    assert weights_key(folder) != sampled
