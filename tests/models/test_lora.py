"""LoRA: gradients and options are those of the peft library, patterns choose what they say."""

import dataclasses

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from support.packed import ARCHITECTURES, alone, logits_of, make_model, make_row, oracle_of, relative

from sft_hydra.checkpoint.adapter import write_adapter
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.errors import ConfigError
from sft_hydra.models.build import as_transformers
from sft_hydra.models.lora import apply_lora
from sft_hydra.models.lora_layers import Adapter, LoraLinear
from sft_hydra.models.state_dict_map import disk_rows, rows_to_disk
from sft_hydra.schema.peft import LoraConfig

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapters(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def on_disk(model, name, tensor):
    name = name.removesuffix(".weight")
    rows = disk_rows(model.config, name)
    return tensor if rows is None else rows_to_disk(tensor, rows)


def randomise(model):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapters(model).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            parameter += 0.5 * (parameter.ndim == 1)  # magnitudes are lengths


def targets(lora):
    model = make_model(ARCHITECTURES["qwen3"])
    apply_lora(model, lora, seed=0)
    return {name for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@pytest.mark.parametrize(
    ("family", "targets"),
    [("qwen3", ALL), ("qwen2", ALL), ("nano", ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj"])],
)
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=lambda options: [*options, ""][0]
)
def test_gradients_equal_the_peft_librarys(family, targets, options):
    model = make_model(ARCHITECTURES[family])
    oracle = get_peft_model(oracle_of(model), PeftConfig(r=4, lora_alpha=6, target_modules=targets, **options))
    ours = {"rank_stabilized" if key == "use_rslora" else key: value for key, value in options.items()}
    lora = LoraConfig(dim=4, alpha=6.0, target_modules=targets, **ours)
    apply_lora(model, lora, seed=0)
    randomise(model)
    theirs = dict(oracle.named_parameters())
    pairs = {
        n: (p, theirs[f"base_model.model.{n.removesuffix('.weight')}.default.weight"])
        for n, p in adapters(model).items()
    }
    with torch.no_grad():
        for name, (mine, other) in pairs.items():
            other.copy_(on_disk(model, name, mine))
    rows = [make_row([8, 1, 30], seed=4)]
    loss, _ = forward_loss(model, make_batch(rows, "cpu"))
    loss.backward()
    expected = alone(oracle, rows)[1]
    expected.backward()
    assert relative(loss, expected) < 1e-6
    for name, (mine, other) in pairs.items():
        assert relative(on_disk(model, name, mine.grad), other.grad) < 3e-5, name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("family", "targets", "parameters"),
    [
        ("qwen3_moe", ["q_proj"], ["experts.gate_up_proj", "experts.down_proj"]),
        ("nano", ["shared_experts.up_proj"], ["experts.up_proj", "experts.down_proj"]),
        ("super", ["q_proj"], ["experts.down_proj"]),
    ],
)
def test_gradients_of_routed_experts_equal_the_peft_librarys(family, targets, parameters, tmp_path):
    lora = LoraConfig(dim=4, alpha=6.0, target_modules=[*targets, *parameters])
    model = make_model(ARCHITECTURES[family])
    base = oracle_of(model)
    apply_lora(model, lora, seed=0)
    randomise(model)
    count = write_adapter(model.config, adapters(model), lora, "base", tmp_path)
    assert count == len(adapters(model))
    oracle = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    rows = [make_row([8, 1, 30], seed=4)]
    loss, _ = forward_loss(model, make_batch(rows, "cpu"))
    loss.backward()
    expected = alone(oracle, rows)[1]
    expected.backward()
    assert relative(loss, expected) < 1e-6
    write_adapter(model.config, {name: p.grad for name, p in adapters(model).items()}, lora, "base", tmp_path)
    mine = load_file(tmp_path / "adapter_model.safetensors")
    theirs = {n.replace(".default", ""): p.grad for n, p in oracle.named_parameters() if p.requires_grad}
    assert mine.keys() == theirs.keys()
    assert any(".experts." in name for name in mine)
    for name, gradient in theirs.items():
        assert relative(mine[name], gradient) < 1e-5, name
    assert relative(alone(as_transformers(model), rows)[0], logits_of(model, make_batch(rows, "cpu"))) < 1e-5


def test_dora_starts_from_the_base_with_dropout_as_in_the_peft_library():
    """Magnitudes at the start are peft's; with dropout the outputs are, too, as both draw the same numbers."""
    model = make_model(ARCHITECTURES["qwen2"])
    row = make_batch([make_row([20, 13])], "cpu")
    plain = logits_of(model, row)
    oracle = get_peft_model(
        oracle_of(model), PeftConfig(r=4, lora_alpha=6, lora_dropout=0.3, target_modules=["q_proj"], use_dora=True)
    )
    apply_lora(model, LoraConfig(dim=4, alpha=6.0, dropout=0.3, target_modules=["q_proj"], use_dora=True), seed=0)
    assert relative(logits_of(model.eval(), row), plain) < 1e-6
    name = "layers.1.self_attn.q_proj"
    layer, other = model.get_submodule(f"model.{name}"), oracle.get_submodule(f"base_model.model.model.{name}")
    assert relative(layer.lora_magnitude_vector.weight, other.lora_magnitude_vector["default"].weight) < 1e-6
    with torch.no_grad():
        for matrix in (layer.lora_A, layer.lora_B):
            torch.nn.init.normal_(matrix, std=0.3)
        other.lora_A["default"].weight.copy_(layer.lora_A)
        other.lora_B["default"].weight.copy_(layer.lora_B)
    x, outputs = torch.randn(50, 32), []
    for module in (layer, other):
        torch.manual_seed(3)
        outputs.append(module.train()(x))
    assert relative(*outputs) < 1e-6
    assert not torch.equal(outputs[0], layer.eval()(x))


def test_dora_on_routed_experts_is_refused():
    with pytest.raises(ConfigError, match=r"use_dora=true: routed experts"):
        apply_lora(make_model(ARCHITECTURES["nano"]), LoraConfig(use_dora=True, match_all_linear=True), seed=0)


def test_routed_experts_are_adapted_where_a_pattern_asks_for_it():
    def adapted(lora):
        model = make_model(ARCHITECTURES["nano"])
        apply_lora(model, lora, seed=0)
        return {name.partition(".mixer.")[2] for name, m in model.named_modules() if isinstance(m, Adapter)}

    routed = {"experts.up_proj", "experts.down_proj"}
    assert not routed & adapted(LoraConfig())
    assert not routed & adapted(LoraConfig(target_modules=[]))
    for asked in (["up_proj", "down_proj"], ["*.experts.*"], ["linear_fc1", "linear_fc2"]):
        assert routed <= adapted(LoraConfig(target_modules=asked))
    assert routed <= adapted(LoraConfig(match_all_linear=True))
    assert not routed & adapted(LoraConfig(exclude_modules=["*.experts.*"]))


@pytest.mark.parametrize("use_dora", [False, True])
def test_merged_equals_unmerged_and_leaves_the_model_alone(use_dora):
    model = make_model(ARCHITECTURES["llama"])
    apply_lora(model, LoraConfig(dim=4, use_dora=use_dora), seed=0)
    randomise(model)
    row = make_row([20, 13])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert relative(alone(as_transformers(model), [row])[0], logits_of(model, make_batch([row], "cpu"))) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone():
    row = make_batch([make_row([20, 13])], "cpu")
    plain = logits_of(make_model(ARCHITECTURES["qwen3"]), row)
    model = make_model(ARCHITECTURES["qwen3"])
    apply_lora(model, LoraConfig(dim=4), seed=0)
    assert torch.equal(logits_of(model, row), plain)
    torch.rand(3)
    again = make_model(ARCHITECTURES["qwen3"])
    apply_lora(again, LoraConfig(dim=4, target_modules=["o_proj"]), seed=0)
    name = "model.layers.1.self_attn.o_proj.lora_A"
    assert torch.equal(adapters(model)[name], adapters(again)[name])
    other = make_model(ARCHITECTURES["qwen3"])
    apply_lora(other, LoraConfig(dim=4), seed=1)
    assert not torch.equal(adapters(model)[name], adapters(other)[name])


@pytest.mark.parametrize(
    ("a_init", "std"), [("xavier", (2 / (64 + 32)) ** 0.5), ("kaiming", (1 / (3 * 32)) ** 0.5), ("normal", 1 / 64)]
)
def test_initialisations_have_their_spread(a_init, std):
    model = make_model(ARCHITECTURES["qwen3"])
    apply_lora(model, LoraConfig(dim=64, a_init=a_init), seed=0)
    a = adapters(model)["model.layers.0.self_attn.q_proj.lora_A"]
    assert a.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_dropout_acts_in_training_only_and_where_it_is_said(position):
    lora = LoraConfig(dim=4, dropout=0.5, dropout_position=position, target_modules=["model.layers.0.self_attn.q_proj"])
    model = make_model(ARCHITECTURES["qwen3"])
    apply_lora(model, lora, seed=0)
    randomise(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    x = torch.ones(4000, 32)
    base = torch.nn.functional.linear(x, layer.weight)
    update = layer.eval()(x) - base
    layer.train()
    dropped = layer(x) - base
    if position == "post":  # an element is dropped or doubled
        kept = dropped.abs() > 1e-4
        assert kept.float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert relative(dropped[kept], 2 * update[kept]) < 1e-3
    else:
        assert (dropped.abs() > 1e-4).float().mean() > 0.95
        assert relative(dropped.mean(0), update[0]) < 0.1
    assert not torch.equal(dropped, update)


def test_patterns_wildcards_and_aliases():
    assert {name.rpartition(".")[2] for name in targets(LoraConfig())} == set(ALL)
    assert targets(LoraConfig(target_modules=["*.layers.1.*.q_proj"])) == {"model.layers.1.self_attn.q_proj"}
    assert targets(LoraConfig(target_modules=["self_attn.*"])) == targets(
        LoraConfig(target_modules=["linear_qkv", "linear_proj"])
    )
    assert targets(LoraConfig(target_modules=["*.layers.0.*.linear_fc1"])) == {
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
    }
    everything = targets(LoraConfig(match_all_linear=True, target_modules=["q_proj"]))
    assert len(everything) == 21
    assert targets(LoraConfig(exclude_modules=["mlp.*"])) == {name for name in everything if "mlp" not in name}


def test_patterns_that_match_nothing_are_all_named():
    with pytest.raises(ConfigError) as caught:
        targets(LoraConfig(target_modules=["q_proj", "query", "in_proj", "lm_head"]))
    assert [problem.split("'")[1] for problem in caught.value.problems] == ["query", "in_proj", "lm_head"]
    assert "q_proj" in caught.value.problems[0].split("it has:")[1]
    with pytest.raises(ConfigError, match="both set"):
        targets(LoraConfig(target_modules=["q_proj"], exclude_modules=["o_proj"]))


def test_coverage_counts_layers_and_parameters():
    model = make_model(ARCHITECTURES["qwen3"])
    table = apply_lora(model, LoraConfig(dim=4, target_modules=["q_proj", "*.layers.0.*.down_proj"]), seed=0)
    rows = {row.kind: dataclasses.astuple(row)[1:] for row in table}
    assert rows["model.layers.*.self_attn.q_proj"] == (3, 3, 3 * 4 * (32 + 32))
    assert rows["model.layers.*.mlp.down_proj"] == (1, 3, 4 * (48 + 32))
    assert rows["model.layers.*.self_attn.o_proj"] == (0, 3, 0)
    assert sum(row.trainable for row in table) == sum(p.numel() for p in adapters(model).values())
