"""The published configs build (without memory) to what transformers builds: names, shapes, numbers of parameters."""

import json

import pytest
import torch

from sft_hydra.models.build import build_model, transformers_class
from sft_hydra.models.state_dict_map import to_disk

# billions of parameters as published: with the embedding of Qwen3-0.6B counted once
PUBLISHED = {
    "Qwen3-0.6B": 0.596,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31.578,
    "NVIDIA-Nemotron-3-Super-120B-A12B-BF16": 120.669,
}


@pytest.fixture(params=PUBLISHED)
def built(request, shared):
    architecture = json.loads((shared / "assets" / "models" / request.param / "config.json").read_text())
    model = build_model(architecture, "meta", torch.bfloat16)
    with torch.device("meta"):
        theirs = transformers_class(model.config)(model.config)
    return model, theirs, PUBLISHED[request.param]


def in_transformers(name):
    """What transformers calls a tensor of ours in memory."""
    name = name.replace(".ssm.", ".")
    if ".experts." in name:
        name = name.removesuffix(".weight")
    if ".mixer." in name or name.startswith(("model.embed_tokens", "model.norm.")):
        return name.replace("embed_tokens.", "embeddings.").replace("model.norm.", "model.norm_f.")
    return name


def test_names_shapes_and_counts(built):
    model, theirs, billions = built
    translate = in_transformers if model.config.model_type == "nemotron_h" else str
    ours = {translate(name): tensor.shape for name, tensor in model.state_dict().items()}
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    assert ours == expected
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert parameters / 1e9 == pytest.approx(billions, abs=5e-4)


def test_state_space_and_router_corrections_stay_fp32(built):
    model, _, _ = built
    kept = {name.rpartition(".")[2] for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    hybrid = model.config.model_type == "nemotron_h"
    assert kept == ({"A_log", "dt_bias", "D", "e_score_correction_bias"} if hybrid else set())


def test_one_tensor_per_expert_on_disk(shared):
    file = shared / "assets" / "models" / "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16" / "config.json"
    model = build_model(json.loads(file.read_text()), "meta", torch.bfloat16)
    tensors = {name: tuple(tensor.shape) for name, tensor in to_disk(model.config, model.state_dict())}
    assert tensors["backbone.layers.1.mixer.experts.127.up_proj.weight"] == (1856, 2688)
    assert tensors["backbone.layers.1.mixer.experts.0.down_proj.weight"] == (2688, 1856)
    assert tensors["backbone.layers.0.mixer.in_proj.weight"] == (4096 + 6144 + 64, 2688)
    assert tensors["backbone.layers.0.mixer.conv1d.weight"] == (6144, 1, 4)
    assert tensors["backbone.embeddings.weight"] == tensors["lm_head.weight"] == (131072, 2688)
    assert sum(".experts." in name for name in tensors) == 23 * 128 * 2
