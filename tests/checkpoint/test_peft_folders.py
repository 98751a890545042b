"""`peft.path`: adapters that the peft library itself made give peft's logits and gradients here, and ours give ours there."""

import json

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.configs import make_cfg
from support.generic import generic
from support.packed import ARCHITECTURES, alone, logits_of, make_model, make_row, oracle_of, relative

from sft_hydra.checkpoint.adapter import load_adapter, write_adapter
from sft_hydra.config.adapter import adopt_adapter, read_adapter
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.errors import ConfigError, ModelError
from sft_hydra.models.build import as_transformers
from sft_hydra.models.lora import add_adapters
from sft_hydra.schema.peft import LoraConfig

ROWS = [make_row([8, 1, 30], seed=4)]
MADE_BY_PEFT = {
    "list": ("qwen3", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}),
    "regex": ("qwen3", {"r": 3, "lora_alpha": 8, "target_modules": r".*layers\.[02]\..*(up|down)_proj"}),
    "all-linear": ("qwen2", {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "lora_dropout": 0.1}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "o_proj", "up_proj"],
            "rank_pattern": {"o_proj": 7, r"layers\.1\.mlp\.up_proj": 2},
            "alpha_pattern": {"q_proj": 31, r"^model\.layers\.2\.self_attn\.o_proj": 5},
        },
    ),
    "rslora_some_layers": (
        "qwen3",
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": ["k_proj", "gate_proj"],
            "rank_pattern": {"k_proj": 9},
            "layers_to_transform": [0, 2],
            "layers_pattern": "layers",
            "init_lora_weights": "gaussian",
        },
    ),
    "dora": ("qwen2", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "dora_hybrid": ("nano", {"r": 4, "lora_alpha": 6, "target_modules": ["in_proj", "q_proj"], "use_dora": True}),
    "dora_generic": ("gemma2", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "use_dora": True}),
    "hybrid": ("nano", {"r": 4, "lora_alpha": 6, "target_modules": ["in_proj", "q_proj", "shared_experts.up_proj"]}),
    "experts": (
        "qwen3_moe",
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
    "one_kind_of_experts": (
        "nano",
        {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
    ),
    "generic": ("gemma2", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}),
    "fused": (
        "phi3",
        {"r": 4, "lora_alpha": 6, "target_modules": ["qkv_proj", "gate_up_proj"], "fan_in_fan_out": True},
    ),
}


def base_of(family):
    return make_model(ARCHITECTURES[family]) if family in ARCHITECTURES else generic(family)


def made_by_peft(family, options, folder):
    """A base of ours, and peft's model on the same weights whose random adapter is saved in `folder`."""
    model = base_of(family)
    theirs = get_peft_model(oracle_of(model), PeftConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(folder, save_embedding_layers=False)
    return model, theirs


def adopted(folder, **options):
    """The config of `peft.path=<folder>`, resolved."""
    cfg = make_cfg(peft=LoraConfig(path=str(folder), **options))
    cfg.model.path = "base"
    assert adopt_adapter(cfg, []) == []
    return cfg


@pytest.mark.parametrize("case", MADE_BY_PEFT)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_an_adapter_of_the_peft_library_has_its_logits_and_gradients(case, tmp_path):
    family, options = MADE_BY_PEFT[case]
    model, theirs = made_by_peft(family, options, tmp_path / "theirs")
    lora = adopted(tmp_path / "theirs").peft
    assert lora.dropout == options.get("lora_dropout", 0.0)
    add_adapters(model, lora)
    load_adapter(model, lora.path)
    model.eval()
    theirs.eval()
    batch = make_batch(ROWS, "cpu")
    expected_logits, expected = alone(theirs, ROWS)
    assert relative(logits_of(model, batch), expected_logits) < 1e-5
    assert relative(alone(as_transformers(model), ROWS)[0], expected_logits) < 1e-5
    loss, _ = forward_loss(model, batch)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) < 1e-6
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in adapters.items()}
    (tmp_path / "gradients").mkdir()
    write_adapter(model.config, gradients, lora, "base", tmp_path / "gradients")
    mine = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    assert mine.keys() == load_file(tmp_path / "theirs" / "adapter_model.safetensors").keys()
    other = {
        n.replace(".default", "").replace("vector.weight", "vector"): p.grad
        for n, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert mine.keys() == other.keys()
    for name, gradient in other.items():
        assert relative(mine[name], gradient) < 1e-5, name
    (tmp_path / "ours").mkdir()
    write_adapter(model.config, adapters, lora, "base", tmp_path / "ours")
    again = PeftModel.from_pretrained(oracle_of(base_of(family)), tmp_path / "ours").eval()
    assert relative(alone(again, ROWS)[0], expected_logits) < 1e-5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"layer_replication": [[0, 1]]}, "layer_replication=[[0, 1]]"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"lora_bias": True}, "lora_bias=true"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"peft_type": "LOHA"}, "peft_type=LOHA"),
        ({"task_type": "SEQ_CLS"}, "task_type=SEQ_CLS"),
        ({"r": 0, "layer_replication": [[0, 2]]}, "layer_replication=[[0, 2]]"),
        ({"some_later_option": {"on": 1}}, 'some_later_option={"on": 1}'),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, fields, named):
    made_by_peft("qwen3", MADE_BY_PEFT["list"][1], tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(ConfigError) as caught:
        read_adapter(str(tmp_path))
    assert any(named in problem for problem in caught.value.problems)
    assert all(str(tmp_path) in problem for problem in caught.value.problems)
    assert len(caught.value.problems) == len(fields)


def test_tensors_that_have_no_place_or_another_shape_are_named(tmp_path):
    model, _ = made_by_peft("qwen3", MADE_BY_PEFT["list"][1], tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(ConfigError, match=r"layers.1.self_attn.q_proj has only lora_A"):
        read_adapter(str(tmp_path))
    save_file(tensors | {"base_model.model.lm_head.weight": torch.ones(2)}, file)
    with pytest.raises(ConfigError, match=r"lm_head.weight in .* is not supported"):
        read_adapter(str(tmp_path))
    save_file(tensors | {name: torch.ones(5, 4)}, file)
    lora = adopted(tmp_path).peft
    add_adapters(model, lora)
    with pytest.raises(
        ModelError, match=r"q_proj.lora_B.weight has shape \(5, 4\), but .* of this model has \(32, 4\)"
    ):
        load_adapter(model, lora.path)
    file.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        read_adapter(str(tmp_path))
    file.unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickle"):
        read_adapter(str(tmp_path))


def test_what_is_said_otherwise_than_the_adapter_is_refused(tmp_path):
    made_by_peft("llama", MADE_BY_PEFT["patterns"][1], tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    cfg = make_cfg(peft=LoraConfig(path=str(tmp_path), dim=16, target_modules=["k_proj"]))
    problems = adopt_adapter(cfg, ["peft.alpha"])
    assert [problem.partition("=")[0] for problem in problems[:3]] == ["peft.dim", "peft.alpha", "peft.target_modules"]
    assert "names no base model" in problems[3]
    assert cfg.peft.dim == 4  # type: ignore[union-attr]
    assert cfg.peft.rank_pattern == {"o_proj": 7, r"layers\.1\.mlp\.up_proj": 2}  # type: ignore[union-attr]
    assert len(cfg.peft.target_modules) == 9  # type: ignore[arg-type, union-attr]


def test_the_base_is_the_one_that_is_named_else_the_one_beside_the_adapter(tmp_path):
    made_by_peft("qwen3", MADE_BY_PEFT["list"][1], tmp_path)
    file = tmp_path / "adapter_config.json"
    for named, there, base in (
        ("owner/base", False, "owner/base"),
        ("/gone", True, str(tmp_path / "base")),
        (None, True, str(tmp_path / "base")),
        (str(tmp_path), True, str(tmp_path)),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": named}))
        if there:
            (tmp_path / "base").mkdir(exist_ok=True)
            (tmp_path / "base" / "config.json").write_text("{}")
        cfg = make_cfg(peft=LoraConfig(path=str(tmp_path)))
        assert adopt_adapter(cfg, []) == []
        assert cfg.model.path == base
