"""Weights in and out of Hugging Face folders, and evaluation, under any layout."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.packed import ARCHITECTURES, relative
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model
from transformers import AutoModelForCausalLM

from sft_hydra.chat.tokenizer import NewTokens, load_tokenizer
from sft_hydra.checkpoint.hf_export import export
from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.engine.materialize import materialize_on_mesh
from sft_hydra.models.build import as_transformers, build_model
from sft_hydra.models.init_weights import init_weights
from sft_hydra.models.lora import add_adapters, init_adapters
from sft_hydra.parallel.dtensor import full_tensor, local_shard
from sft_hydra.planning.layout import Layout
from sft_hydra.runners.write_export import export_settings
from sft_hydra.schema.peft import LoraConfig

LAYOUTS = [
    (4, {"tp": 2, "cp": 2, "ep": 4}),
    (2, {"ep": 2}),
    (4, {"pp": 2, "tp": 2}),
    (4, {"dp_replicate": 2, "ep": 2}),
    (8, {"pp": 2, "tp": 2, "cp": 2, "ep": 4}),
    (3, {}),
]
EACH_LAYOUT = [pytest.param(*LAYOUTS[0]), *(pytest.param(*case, marks=pytest.mark.distributed) for case in LAYOUTS[1:])]


def everywhere(answers):
    return {name: tensor for answer in answers for name, tensor in answer.items()}


def write(case, layout, folder):
    cfg = make_cfg(case)
    cfg.export.merge = case.lora is not None and folder.name == "merged"
    model = placed_model(case, cfg, layout)
    report = export(model, export_settings(cfg), load_tokenizer(cfg), folder)
    return report, {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("world", "sizes"), EACH_LAYOUT)
@pytest.mark.parametrize("family", ["nano", "qwen3"])
def test_exports_what_one_process_exports(tmp_path, family, world, sizes):
    if family == "qwen3":
        sizes = {key: size for key, size in sizes.items() if key != "ep"}
    case = Case(family)
    expected, _ = write(case, Layout(), tmp_path / "one")
    [(report, _), *_] = run_ranks(world, write, case, Layout(gpus_per_node=world, **sizes), tmp_path / "many")
    assert (report.kind, report.tensors, report.dtype) == (expected.kind, expected.tensors, expected.dtype)
    assert report.max_diff <= report.allowed_diff
    one, many = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(many[name], tensor) for name, tensor in one.items())
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "many", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize(("world", "sizes"), [LAYOUTS[0], LAYOUTS[2]])
def test_exports_adapters_as_one_process_does(tmp_path, kind, world, sizes):
    case = Case("nano", lora=LoraConfig(dim=4, use_dora=True))
    for name, layout in (("one", Layout()), ("many", Layout(gpus_per_node=world, **sizes))):
        if layout.world == 1:
            write(case, layout, tmp_path / name / kind)
        else:
            run_ranks(world, write, case, layout, tmp_path / name / kind)
    file = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    one, many = (load_file(tmp_path / name / kind / file) for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(relative(many[name], tensor) < 1e-6 for name, tensor in one.items())


def stream(architecture, layout, folder):
    """Load from files, and say how many numbers this rank holds."""
    cfg = make_cfg(Case())
    model = build_model(architecture, "meta", torch.float32)
    materialize_on_mesh(model, cfg.train, layout, torch.device("cpu"))
    load_weights(model, str(folder))
    part = sum(local_shard(parameter)[0].numel() for parameter in model.parameters())
    return part, {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("world", "sizes"), EACH_LAYOUT)
def test_weights_stream_in_by_slices(tmp_path, world, sizes):
    write(Case("nano"), Layout(), tmp_path / "hf")
    architecture = json.loads((tmp_path / "hf" / "config.json").read_text())
    total, whole = stream(architecture, Layout(), tmp_path / "hf")
    answers = run_ranks(world, stream, architecture, Layout(gpus_per_node=world, **sizes), tmp_path / "hf")
    loaded = everywhere(tensors for _, tensors in answers)
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())
    largest = max(part for part, _ in answers)
    assert largest < 1.5 * total / (world / sizes.get("dp_replicate", 1))


def stream_grown(architecture, layout, folder):
    model = build_model(architecture, "meta", torch.float32)
    materialize_on_mesh(model, make_cfg(Case()).train, layout, torch.device("cpu"))
    load_weights(model, str(folder), new_tokens=NewTokens((3, 95, 97, 98), 95))
    return {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}


def test_tables_grow_alike_under_any_layout(tmp_path):
    write(Case("llama"), Layout(), tmp_path / "hf")
    architecture = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"vocab_size": 99}
    whole = stream_grown(architecture, Layout(), tmp_path / "hf")
    loaded = everywhere(run_ranks(3, stream_grown, architecture, Layout(gpus_per_node=3), tmp_path / "hf"))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())
    assert len(loaded["lm_head.weight"]) == 99


def start(architecture, layout, kind):
    cfg = make_cfg(Case(lora=LoraConfig(dim=4, use_dora=True, init_lora_weights=kind)))
    model = build_model(architecture, "meta", torch.float32)
    add_adapters(model, cfg.peft)  # type: ignore[arg-type]
    materialize_on_mesh(model, cfg.train, layout, torch.device("cpu"))
    init_weights(model, seed=3, std=0.1)
    init_adapters(model, seed=3)
    return {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("family", "kind"), [("nano", None), ("qwen3", "pissa_niter_4")])
def test_a_random_start_does_not_depend_on_the_layout(family, kind):
    architecture = ARCHITECTURES[family]
    expected = start(architecture, Layout(), kind)
    sizes = {"pp": 2, "tp": 2, "ep": 2} if family == "nano" else {"pp": 2, "tp": 2}
    started = everywhere(run_ranks(4, start, architecture, Layout(gpus_per_node=4, **sizes), kind))
    assert started.keys() == expected.keys()
    assert all(torch.equal(started[name], tensor) for name, tensor in expected.items())


def generation_model(case, layout):
    return as_transformers(placed_model(case, make_cfg(case), layout)).state_dict()


def test_every_rank_gets_the_model_to_generate_with():
    case = Case("nano", lora=LoraConfig(dim=4, use_dora=True))
    expected = generation_model(case, Layout())
    for found in run_ranks(4, generation_model, case, Layout(gpus_per_node=4, pp=2, ep=2)):
        assert found.keys() == expected.keys()
        assert all(relative(found[name], tensor) < 1e-6 for name, tensor in expected.items())
