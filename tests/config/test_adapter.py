"""Adapter folders as `peft.path`: what is taken from them, and the error for each kind of adapter that is not supported."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_hydra.config.adapter import CONFIG, PICKLE, PREFIX, WEIGHTS, adopt_adapter, is_adapter_folder, read_adapter
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.peft import LoraConfig

LAYER = "model.layers.0.self_attn.q_proj"
PARTS = [f"{PREFIX}{LAYER}.lora_A.weight", f"{PREFIX}{LAYER}.lora_B.weight"]
Write = Callable[..., str]
Resolved = Callable[..., SftConfig]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(names, key=value): a folder with these fields of adapter_config.json and a safetensors header of these names."""

    def make(names: list[str] | None = None, **fields: Any) -> str:
        folder = tmp_path / "adapter"
        folder.mkdir()
        usual = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
        (folder / CONFIG).write_text(json.dumps({**usual, **fields}))
        head = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names or PARTS})
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head.encode())
        return str(folder)

    return make


def refusal(path: str) -> str:
    with pytest.raises(ConfigError) as error:
        read_adapter(path)
    return "\n".join(error.value.problems)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type=IA3 is not LORA"),
        ({"r": 0}, "r=0 in adapter_config.json must be a positive number"),
        ({"lora_alpha": True}, "lora_alpha=True in adapter_config.json must be a positive number"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern in adapter_config.json must map patterns to positive numbers"),
        ({"task_type": "SEQ_CLS"}, "task_type=SEQ_CLS is not CAUSAL_LM"),
        ({"bias": "all"}, "bias=all is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa is not supported: it changes the base weights"),
        ({"layer_replication": [[0, 4]]}, "layer_replication=[[0, 4]] in adapter_config.json is not supported: layers are"),
        ({"invented": 1}, "invented=1 in adapter_config.json is not supported; merge it with peft"),
        ({"trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}}, "names different tokens for each table"),
        ({"use_dora": True}, "has only lora_A and lora_B in adapter_model.safetensors; lora_magnitude_vector is missing"),
    ],
)  # fmt: skip
def test_an_unsupported_field_is_named(write: Write, fields: dict[str, Any], message: str) -> None:
    assert message in refusal(write(**fields))


def test_all_problems_are_listed_at_once(write: Write) -> None:
    assert refusal(write(r=-1, bias="all", invented=1)).count("peft.path=") == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (PARTS[:1], f"{LAYER} has only lora_A in adapter_model.safetensors; lora_B is missing"),
        ([*PARTS, "lm_head.bias"], "lm_head.bias in adapter_model.safetensors is not one of lora_A, lora_B"),
        (["__metadata__"], "adapter_model.safetensors contains no LoRA tensors"),
    ],
)
def test_a_tensor_that_is_missing_or_unknown_is_named(write: Write, names: list[str], message: str) -> None:
    assert message in refusal(write(names))


def test_a_folder_that_is_not_an_adapter(tmp_path: Path) -> None:
    assert "no such folder; download an adapter from the hub first" in refusal(str(tmp_path / "absent"))
    assert "has no adapter_config.json" in refusal(str(tmp_path))
    (tmp_path / CONFIG).write_text("[]")
    assert "is not a JSON object" in refusal(str(tmp_path))
    (tmp_path / CONFIG).write_text("{")
    assert "cannot be read" in refusal(str(tmp_path))


def test_files_of_weights_that_cannot_be_read(write: Write) -> None:
    folder = Path(write())
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    assert "cannot be read as safetensors (its header is longer than the file)" in refusal(str(folder))
    (folder / WEIGHTS).unlink()
    (folder / PICKLE).touch()
    assert "adapter_model.bin is a pickle, which is not supported" in refusal(str(folder))


def test_experts_and_the_trunk_of_nemotron_have_our_names(write: Write) -> None:
    layers = ["backbone.layers.1.mixer.up_proj", "model.layers.0.mlp.experts.base_layer", "model.layers.0.mlp.experts"]
    names = [f"{PREFIX}{layer}.lora_{part}.weight" for layer in layers for part in "AB"]
    adapter = read_adapter(write(names, target_parameters=["experts.gate_up_proj", "experts.down_proj"]))
    assert sorted(adapter.layers) == [
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.1.mixer.up_proj",
    ]


def test_the_base_beside_an_adapter_stands_in_for_one_that_is_gone(write: Write, tmp_path: Path) -> None:
    folder = Path(write(base_model_name_or_path=str(tmp_path / "gone")))
    assert read_adapter(str(folder)).base == str(tmp_path / "gone")
    (folder / "base").mkdir()
    (folder / "base" / "config.json").touch()
    assert read_adapter(str(folder)).base == str(folder / "base")
    assert is_adapter_folder(str(folder))


def test_options_and_base_are_those_of_the_adapter(write: Write) -> None:
    path = write(r=4, lora_alpha=8, lora_dropout=0.1, use_rslora=True, rank_pattern={"q_proj": 2})
    cfg = SftConfig(model=ModelConfig(name="hf"), peft=LoraConfig(path=path))
    assert adopt_adapter(cfg, []) == []
    peft = cfg.peft
    assert peft is not None
    assert (peft.dim, peft.alpha, peft.dropout, peft.rank_stabilized) == (4, 8.0, 0.1, True)
    assert (peft.target_modules, peft.rank_pattern) == ([LAYER], {"q_proj": 2})
    assert (cfg.model.path, cfg.model.name) == ("base", "base")


def test_new_tokens_are_named_by_the_tokenizer_beside_the_adapter(write: Write) -> None:
    rows = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    path = write([*PARTS, rows], trainable_token_indices=[7, 8])
    cfg = SftConfig(model=ModelConfig(name="hf"), peft=LoraConfig(path=path))
    (problem,) = adopt_adapter(cfg, [])
    assert "trains the tokens [7, 8], which are not added tokens of" in problem
    added = [{"id": 7, "content": "<note>"}, {"id": 8, "content": "<end>", "special": True}]
    (Path(path) / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert adopt_adapter(cfg, []) == []
    assert (cfg.tokenizer.add_tokens, cfg.tokenizer.add_special_tokens) == (["<note>"], ["<end>"])
    assert cfg.peft is not None
    assert cfg.peft.trainable_new_tokens


def test_options_that_contradict_the_adapter_are_errors(write: Write, resolved: Resolved) -> None:
    path = write(base_model_name_or_path=None)
    with pytest.raises(ConfigError) as error:
        resolved(f"peft.path={path}", "peft.dim=16", "model=tiny")
    text = "\n".join(error.value.problems)
    assert f"peft.dim=16: the adapter in peft.path={path} has 4; remove peft.dim" in text
    assert "adapter_config.json names no base model; set model.path=<folder or hub id>" in text
