"""Runs on a quantized base: weights in from any side, resumes, adapters and merged models out."""

import json

import pytest
import torch
from peft import PeftModel
from support.packed import ARCHITECTURES, RowList, alone, logits_of, make_model, make_row, relative
from support.quantized import loaded_bytes, quantized, saved
from support.ranks import run_ranks
from transformers import AutoModelForCausalLM

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.checkpoint.hf_export import export
from sft_hydra.checkpoint.state import latest, load, save
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import ModelError
from sft_hydra.models.build import as_transformers
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.runners.write_export import export_settings
from sft_hydra.schema.peft import LoraConfig

LORA = LoraConfig(dim=4, alpha=8.0, quantize_base="nf4")
ROWS = RowList(make_row([5 + i % 7, 20, 3], seed=i) for i in range(60))


def newest(folder):
    """The newest checkpoint, which there is."""
    found = latest(folder)
    assert found is not None
    return found


def train(model, optimizer, state, cfg, until):
    losses = []
    train_loop(
        model,
        optimizer,
        ROWS,
        state,
        recipe_of(cfg),
        8,
        after_step=lambda result: losses.append(result.loss),
        should_stop=lambda: state.step == until,
    )
    return losses


def test_resumed_equals_straight_and_the_checkpoint_holds_adapters_alone(make_cfg, tmp_path):
    folder, cfg = saved(ARCHITECTURES["qwen3"], tmp_path / "base"), make_cfg(peft=LORA)
    first, second = quantized(folder, "nf4", LORA), quantized(folder, "nf4", LORA)
    optimizer, state = build_optimizer(first, cfg.optimizer, cfg.train.precision), TrainState()
    begun = train(first, optimizer, state, cfg, 3)
    save(tmp_path / "checkpoints", first, optimizer, state, recipe_of(cfg), cfg.checkpoint)
    straight = begun + train(first, optimizer, state, cfg, 8)
    optimizer = build_optimizer(second, cfg.optimizer, cfg.train.precision)
    state = load(newest(tmp_path / "checkpoints"), second, optimizer)
    assert begun + train(second, optimizer, state, cfg, 8) == straight
    assert straight[-1] < straight[0]
    (file,) = newest(tmp_path / "checkpoints").glob("model-*.safetensors")
    assert file.stat().st_size < (folder / "model.safetensors").stat().st_size / 2


def test_a_checkpoint_of_full_fine_tuning_is_quantized_as_the_same_folder_is(make_cfg, tmp_path):
    folder, cfg = saved(ARCHITECTURES["nano"], tmp_path / "base"), make_cfg()
    full = make_model(ARCHITECTURES["nano"])
    optimizer = build_optimizer(full, cfg.optimizer, cfg.train.precision)
    save(tmp_path / "checkpoints", full, optimizer, TrainState(), recipe_of(cfg), cfg.checkpoint)
    expected = quantized(folder, "nf4", LORA).state_dict()
    model = quantized(saved(ARCHITECTURES["nano"] | {"num_hidden_layers": 5}, tmp_path / "other"), "nf4", LORA)
    with torch.no_grad():
        for name in model.quantized:
            model.get_parameter(name).zero_()
    load(newest(tmp_path / "checkpoints"), model, None)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_ranks_load_the_same_bytes_as_one(tmp_path):
    folder = saved(ARCHITECTURES["qwen3_moe"], tmp_path / "base")
    expected = loaded_bytes(folder, "nf4", Layout())
    (first, second) = run_ranks(2, loaded_bytes, folder, "nf4", Layout(gpus_per_node=2, ep=2))
    for name, tensor in expected.items():
        assert torch.equal(first[name], tensor), name
        assert torch.equal(second[name], tensor), name


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = make_model(ARCHITECTURES["qwen3"])
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = torch.nan
    as_transformers(model).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight has non-finite values"):
        quantized(tmp_path, "nf4")


@pytest.mark.parametrize("family", ["qwen3", "nano"])
def test_the_adapter_and_the_merged_model_compute_what_was_trained(make_cfg, tmp_path, family):
    folder = saved(ARCHITECTURES[family], tmp_path / "base")
    cfg, row = make_cfg(peft=LORA), make_row([9, 25, 14])
    model, tokenizer = quantized(folder, "nf4", LORA), load_tokenizer(make_cfg())
    live = logits_of(model, make_batch([row], "cpu"))
    adapter = export(
        model, export_settings(cfg), tokenizer, tmp_path / "adapter"
    )  # after a random start: its base beside it
    assert adapter.note is None
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter" / "base")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    if family == "qwen3":  # transformers limits time steps of a hybrid
        assert relative(alone(theirs, [row])[0], live) < 1e-5
    cfg.model.path = str(folder)
    export(model, export_settings(cfg), tokenizer, tmp_path / "on_source")
    assert json.loads((tmp_path / "on_source/adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder
    )
    cfg.export.merge = True
    merged = export(model, export_settings(cfg), tokenizer, tmp_path / "merged")
    assert merged.note is not None
    assert "weights dequantized from nf4, which are not the source's; rounding to float32 lost" in merged.note
    if family == "qwen3":
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert relative(alone(reloaded, [row])[0], live) < 1e-5


def test_rounding_of_a_merge_is_counted(make_cfg, tmp_path):
    folder = saved(ARCHITECTURES["qwen3"], tmp_path / "base")
    cfg = make_cfg(peft=LORA)
    cfg.model.path, cfg.export.merge = str(folder), True
    model = quantized(folder, "nf4", LORA)
    model.config.dtype = torch.bfloat16
    note = export(model, export_settings(cfg), load_tokenizer(make_cfg()), tmp_path / "merged").note
    assert note is not None
    share = float(note.split("bfloat16 lost ")[1].split(" %")[0])
    assert 0.01 < share < 10
