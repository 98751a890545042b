"""Full fine-tuning of a part: patterns choose what they say, and gradients of what is trained are transformers'."""

from pathlib import Path

import pytest
import torch
from support.configs import make_cfg
from support.generic import generic
from support.packed import ARCHITECTURES, alone, gradients, make_model, make_row, oracle_gradients, oracle_of, relative

from sft_hydra.checkpoint.state import latest, load, save
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.loop import TrainState
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import CheckpointError, ConfigError
from sft_hydra.models.freeze import freeze_parameters
from sft_hydra.models.hf.check_contamination import check_contamination
from sft_hydra.planning.estimate import trainable_parameters
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.train import TrainConfig

ROWS = [make_row([8, 1, 30], seed=4)]


def trained(family: str, freeze: list[str] | None = None, trainable: list[str] | None = None) -> set[str]:
    model = make_model(ARCHITECTURES[family])
    freeze_parameters(model, freeze or [], trainable)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("family", "freeze", "trainable"),
    [
        ("qwen3", ["embed_tokens", "model.layers.0.*"], None),
        ("qwen2", [], ["*.layers.1.mlp", "lm_head"]),
        ("nano", ["*.experts.*", "norm", "conv1d"], None),
    ],
)
def test_gradients_of_what_is_trained_are_those_of_transformers(
    family: str, freeze: list[str], trainable: list[str] | None, tmp_path: Path
) -> None:
    model = make_model(ARCHITECTURES[family])
    oracle = oracle_of(model)
    freeze_parameters(model, freeze, trainable)
    loss, _ = forward_loss(model, make_batch(ROWS, "cpu"))
    loss.backward()
    expected = alone(oracle, ROWS)[1]
    expected.backward()
    assert relative(loss, expected) < 1e-6
    mine, theirs = gradients(model), oracle_gradients(oracle, tmp_path)
    assert 0 < len(mine) < len(theirs)
    for name, gradient in mine.items():
        assert relative(gradient, theirs[name]) < 1e-5, name


def test_patterns_name_parameters_and_modules() -> None:
    everything = trained("qwen3")
    assert everything - trained("qwen3", ["*.embed_tokens"]) == {"model.embed_tokens.weight"}
    first = {name for name in everything if name.startswith("model.layers.0.")}
    for pattern in ("model.layers.0.*", "layers.0", "*.layers.0.*"):
        assert trained("qwen3", [pattern]) == everything - first
        assert trained("qwen3", trainable=[pattern]) == first
    assert trained("qwen3", ["mlp"], ["layers.0"]) == {name for name in first if ".mlp." not in name}
    assert trained("qwen3", ["linear_qkv"]) == {
        name for name in everything if name.split(".")[-2] not in ("q_proj", "k_proj", "v_proj")
    }
    assert trained("qwen3", trainable=[]) == everything


def test_patterns_without_a_match_and_nothing_to_train_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        trained("qwen3", ["q_proj", "query", "lm_head"], ["layers.9"])
    assert [problem.split("'")[1] for problem in caught.value.problems] == ["query", "lm_head", "layers.9"]
    assert "train.freeze: 'query' matches no parameter of this model; it has: down_proj," in caught.value.problems[0]
    with pytest.raises(ConfigError, match="leaves no parameter to train"):
        trained("qwen3", ["model"])


def test_the_table_counts_what_is_trained_as_the_plan_does() -> None:
    for family in ("qwen3", "nano"):
        model = make_model(ARCHITECTURES[family])
        train = TrainConfig(freeze=["embed_tokens", "*.layers.2.*"])
        table = freeze_parameters(model, train.freeze, train.trainable)
        counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(row.trainable for row in table) == counted
        assert trainable_parameters(ARCHITECTURES[family], None, train=train) == pytest.approx(counted, rel=0.01)
        rows = {row.kind: (row.adapted, row.total) for row in table}
        assert rows["model.embed_tokens.weight"] == (0, 1)
        assert (2, 3) in rows.values() if family == "qwen3" else (0, 1) in rows.values()


def test_a_checkpoint_holds_the_whole_model_and_refuses_another_choice(tmp_path: Path) -> None:
    cfg = make_cfg()
    model = make_model(ARCHITECTURES["qwen3"])
    freeze_parameters(model, ["embed_tokens"], None)
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    loss, _ = forward_loss(model, make_batch(ROWS, "cpu"))
    loss.backward()
    optimizer.step()
    save(tmp_path, model, optimizer, TrainState(step=1), recipe_of(cfg), cfg.checkpoint)
    step = latest(tmp_path)
    assert step is not None
    again = make_model(ARCHITECTURES["qwen3"], seed=3)
    freeze_parameters(again, ["embed_tokens"], None)
    load(step, again, build_optimizer(again, cfg.optimizer, cfg.train.precision))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    whole = make_model(ARCHITECTURES["qwen3"])
    with pytest.raises(CheckpointError, match=r"other parameters than this run trains: model.embed_tokens"):
        load(step, whole, build_optimizer(whole, cfg.optimizer, cfg.train.precision))


def test_models_of_transformers_are_frozen_by_their_own_names() -> None:
    model = generic("gpt2")
    freeze_parameters(model, ["wte", "wpe", "h.0"], None)
    loss, _ = forward_loss(model, make_batch(ROWS, "cpu"))
    loss.backward()
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {"h", "ln_f"}
    check_contamination(model)
