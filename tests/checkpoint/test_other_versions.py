"""Exports under transformers 4, in an environment of its own: logits and rendered chats are those of the live model.

`SFT_HYDRA_TRANSFORMERS4` names a Python that has transformers 4.57.1; `.ci/run` makes one.
"""

import json
import os
import subprocess

import pytest
import torch
from support.generic import generic
from support.packed import ARCHITECTURES, make_model

from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.checkpoint.hf_config import with_old_names
from sft_hydra.checkpoint.hf_export import export, live_logits, probe_ids
from sft_hydra.models.build import read_config
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.runners.write_export import export_settings

OURS = ("qwen3", "qwen2", "llama", "llama3_rope", "yarn", "linear_rope", "mistral_window", "qwen3_moe")
OTHERS = {
    "gemma2": {},
    "gemma3_text": {
        "dtype": "float32",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    },
    "phi3": {
        "rope_theta": 5000.0,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]},
    },
    "olmo2": {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "gpt2": {},
    "gpt_neox": {"rotary_emb_base": 5000, "rotary_pct": 0.5},
    "starcoder2": {"rope_theta": 5000.0},
    "cohere": {"rope_theta": 5000.0},
    "smollm3": {"rope_theta": 5000.0},
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is  2+3?\n"},
    {"role": "assistant", "content": "5 \u00e9"},
    {"role": "user", "content": "And 4?"},
]


def test_renamed_fields_stand_beside_the_names_that_older_readers_know():
    config = read_config(ARCHITECTURES["llama3_rope"] | {"dtype": "bfloat16"})
    fields = with_old_names(config)
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 1000.0
    assert fields["rope_scaling"]["rope_type"] == fields["rope_scaling"]["type"] == "llama3"
    assert fields["torch_dtype"] == fields["dtype"] == "bfloat16"
    assert with_old_names(read_config(ARCHITECTURES["qwen3"]))["rope_scaling"] is None
    assert with_old_names(read_config(ARCHITECTURES["qwen3_moe"]))["num_experts"] == 6
    hybrid = with_old_names(read_config(ARCHITECTURES["nano"]))
    assert hybrid["hybrid_override_pattern"] == "ME*EM"
    assert hybrid["num_hidden_layers"] == 5
    assert "Infinity" not in json.dumps(hybrid)


@pytest.mark.parametrize("name", ["TokenizersBackend", None])
def test_the_tokenizers_class_is_one_that_both_versions_know(make_cfg, tmp_path, name):
    bundled = load_tokenizer(make_cfg())
    bundled.save_files(tmp_path / "source")
    file = tmp_path / "source" / "tokenizer_config.json"
    file.write_text(json.dumps({"tokenizer_class": name, "extra_special_tokens": ["<|im_start|>"]}))
    ChatTokenizer(tmp_path / "source", bundled.template).save_files(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in config
    assert config["chat_template"] == (tmp_path / "hf" / "chat_template.jinja").read_text() == bundled.template


@pytest.mark.slow
def test_transformers_4_computes_and_renders_the_same(make_cfg, tmp_path):
    python = os.environ.get("SFT_HYDRA_TRANSFORMERS4")
    if not python:
        pytest.skip("needs a Python with transformers 4.57.1, named by SFT_HYDRA_TRANSFORMERS4")
    cfg = make_cfg()
    tokenizer = load_tokenizer(cfg)
    models = {name: make_model(ARCHITECTURES[name]) for name in OURS}
    models |= {name: generic(name, **fields) for name, fields in OTHERS.items()}  # type: ignore[arg-type]
    live, folders = {}, {}
    for name, model in models.items():
        folder = tmp_path / name
        export(model, export_settings(cfg), tokenizer, folder)
        live[str(folder)], folders[str(folder)] = live_logits(model, recipe_of(cfg).micro_batch_tokens), name
    asked = {
        "models": list(live),
        "tokenizers": [str(tmp_path / "qwen3")],
        "messages": MESSAGES,
        "input_ids": probe_ids(next(iter(models.values())).config).tolist(),
    }
    reader = os.path.join(os.path.dirname(__file__), os.pardir, "support", "read_exports.py")
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [python, reader], input=json.dumps(asked), capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answers = json.loads(run.stdout)
    assert answers["version"].startswith("4.57")
    differences = {
        name: float((torch.tensor(answers["logits"][folder]) - live[folder]).abs().max() / live[folder].abs().max())
        for folder, name in folders.items()
    }
    assert max(differences.values()) < 1e-5, differences
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(tmp_path / "qwen3")
    text = ours.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    [folder] = asked["tokenizers"]
    assert answers["chats"][folder] == text
    assert answers["ids"][folder] == tokenizer.encode(text)
    assert answers["stops"][folder][0] == tokenizer.end_of_turn_ids[0]
