"""A model folder that cannot be loaded is named by the rules, in the dry run too, with the file and without torch."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sft_hydra.config.weight_files import weight_problems

Problems = Callable[..., list[str]]
CONFIG = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 8, "vocab_size": 512,
}  # fmt: skip
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def model(empty_folder: Path) -> Path:
    """A folder with two shards and their index, as the safetensors library writes them."""
    folder = empty_folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"model.embed_tokens.weight": torch.zeros(512, 8)}, folder / PARTS[0])
    save_file({"model.norm.weight": torch.zeros(8, dtype=torch.bfloat16)}, folder / PARTS[1])
    weight_map = {"model.embed_tokens.weight": PARTS[0], "model.norm.weight": PARTS[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def pickles(folder: Path) -> None:
    no_index(folder)
    for part in PARTS:
        (folder / part).unlink()
    torch.save({}, folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    pickles(folder)
    (folder / "pytorch_model.bin").unlink()
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")


def bad_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')


def outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')


def cut(folder: Path) -> None:
    data = (folder / PARTS[0]).read_bytes()
    (folder / PARTS[0]).write_bytes(data[:-5])


def pointer(folder: Path) -> None:
    (folder / PARTS[1]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def not_there(folder: Path) -> None:
    save_file({"other": torch.zeros(8)}, folder / PARTS[1])


def other_vocabulary(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 600}))


def odd_header(folder: Path) -> None:
    header = b'{"a": 1}'
    (folder / PARTS[1]).write_bytes(struct.pack("<Q", len(header)) + header)


CASES = [
    (
        no_index,
        "has 2 safetensors files (model-00001-of-00002.safetensors, ...) but no model.safetensors.index.json",
    ),
    (pickles, "has weights as pickles (pytorch_model.bin); only safetensors are supported"),
    (adapter, "holds only a LoRA adapter (adapter_model.safetensors)"),
    (bad_index, "not a readable index of tensors"),
    (outside, "names ../x.safetensors, which is not a file in the same folder"),
    (lambda folder: (folder / PARTS[1]).unlink(), f"{PARTS[1]}, named in model.safetensors.index.json, does not exist"),
    (cut, "as in its header; copy it again"),
    (pointer, "is not a safetensors file, or is truncated"),
    (odd_header, "its header does not describe tensors"),
    (not_there, "does not contain model.norm.weight, which model.safetensors.index.json lists for it"),
    (other_vocabulary, "vocab_size=600 in config.json, but model.embed_tokens.weight has 512 rows"),
]


@pytest.mark.parametrize(("damage", "expected"), CASES)
def test_damage_is_named(damage: Callable[[Path], None], expected: str, model: Path, problems: Problems) -> None:
    assert list(weight_problems(model, CONFIG)) == []
    damage(model)
    for more in ([], ["dry_run=true"]):
        found = problems("model=hf", "model.path=model", "tokenizer.path=demo", *more)
        assert any(expected in problem for problem in found), found


def test_a_config_without_weights_is_enough_for_a_plan_alone(empty_folder: Path, problems: Problems) -> None:
    (empty_folder / "model").mkdir()
    (empty_folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    assert list(weight_problems(empty_folder / "model", CONFIG)) == []
    assert any("has a config.json but no weights" in text for text in problems("model=hf", "model.path=model"))


def test_a_tokenizer_with_more_ids_than_the_model(model: Path, problems: Problems) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(16, 8)}, model / PARTS[0])
    (model / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 16}))
    argv = ["model=hf", "model.path=model", "tokenizer.path=demo", "dry_run=true"]
    assert "set tokenizer.path to the model's tokenizer" in problems(*argv)[0]
