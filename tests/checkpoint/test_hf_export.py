"""Exports are what transformers and peft load, with the logits of the live model; and they load back into ours."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.packed import ARCHITECTURES, alone, logits_of, make_model, make_row, oracle_of, relative
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.checkpoint import hf_export as exporting
from sft_hydra.checkpoint import hf_shards
from sft_hydra.checkpoint.hf_config import generation_config
from sft_hydra.checkpoint.hf_export import export
from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.engine.batch import make_batch
from sft_hydra.errors import CheckpointError, ModelError
from sft_hydra.models.build import as_transformers, build_model, use_published_limits
from sft_hydra.models.lora import apply_lora
from sft_hydra.runners.write_export import export_settings
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Precision


@pytest.fixture
def row():
    return make_row([9, 25, 14])


@pytest.fixture
def tokenizer(make_cfg):
    return load_tokenizer(make_cfg())


def adapted(lora, architecture="qwen3"):
    """A model whose adapters do something."""
    model = make_model(ARCHITECTURES[architecture])
    apply_lora(model, lora, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama3_rope", "mistral_window", "qwen3_moe", "nano", "super"])
def test_reloaded_equals_live(make_cfg, tokenizer, row, tmp_path, family):
    model = make_model(ARCHITECTURES[family])
    report = export(model, export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    live = logits_of(model, make_batch([row], "cpu"))

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    use_published_limits(theirs)
    assert theirs.dtype == torch.float32
    assert relative(alone(theirs, [row])[0], live) < 1e-5
    assert report.max_diff <= report.allowed_diff
    assert report.tensors == len(load_file(tmp_path / "hf" / "model.safetensors"))

    ours = build_model(json.loads((tmp_path / "hf" / "config.json").read_text()), "cpu", torch.float32)
    load_weights(ours, str(tmp_path / "hf"))
    assert torch.equal(logits_of(ours, make_batch([row], "cpu")), live)


@pytest.mark.parametrize("family", ["qwen3_moe", "super"])
def test_names_and_shapes_are_those_that_transformers_writes(make_cfg, tokenizer, tmp_path, family):
    model = make_model(ARCHITECTURES[family])
    export(model, export_settings(make_cfg()), tokenizer, tmp_path / "ours")
    as_transformers(model).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_heads_for_further_tokens_travel_from_source_to_export(make_cfg, tokenizer, tmp_path):
    export(make_model(ARCHITECTURES["super"]), export_settings(make_cfg()), tokenizer, tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    save_file(load_file(file) | {"mtp.layers.0.norm.weight": torch.arange(4.0)}, file)
    cfg = make_cfg()
    cfg.model.path = str(tmp_path / "source")
    model = build_model(ARCHITECTURES["super"], "cpu", torch.float32)
    load_weights(model, cfg.model.path)
    export(model, export_settings(cfg), tokenizer, tmp_path / "hf")
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    assert torch.equal(exported["mtp.layers.0.norm.weight"], torch.arange(4.0))


def test_sharded_files_are_written_and_read(make_cfg, tokenizer, row, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_shards, "SHARD_BYTES", 20_000)
    model = make_model(ARCHITECTURES["qwen2"])
    live = logits_of(model, make_batch([row], "cpu"))
    export(model, export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert relative(alone(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), [row])[0], live) < 1e-5
    ours = build_model(ARCHITECTURES["qwen2"], "cpu", torch.float32)
    load_weights(ours, str(tmp_path / "hf"))
    assert torch.equal(logits_of(ours, make_batch([row], "cpu")), live)


def test_tokenizer_and_stop_ids_travel_with_the_model(make_cfg, tokenizer, tmp_path):
    export(make_model(ARCHITECTURES["qwen3"]), export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.chat_template == tokenizer.template
    assert theirs("some text", add_special_tokens=False).input_ids == tokenizer.encode("some text")
    stops = GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id
    assert tokenizer.end_of_turn_ids
    assert stops[: len(tokenizer.end_of_turn_ids)] == tokenizer.end_of_turn_ids


def test_bf16_source_stays_bf16(make_cfg, tokenizer, tmp_path):
    model = make_model(ARCHITECTURES["qwen3"] | {"dtype": "bfloat16"})
    report = export(model, export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    assert report.dtype == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.bfloat16}
    assert as_transformers(model).dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("qwen3", LoraConfig(dim=4, alpha=8.0)),
        ("qwen3", LoraConfig(dim=4, alpha=6.0, rank_stabilized=True)),
        ("nano", LoraConfig(dim=4)),
        ("nano", LoraConfig(dim=4, use_dora=True, target_modules=["in_proj", "linear_qkv"])),
        ("nano", LoraConfig(dim=4, target_modules=["in_proj", "linear_qkv"])),
        ("nano", LoraConfig(dim=4, target_modules=["q_proj", "up_proj", "down_proj"])),
        ("qwen3_moe", LoraConfig(dim=4, alpha=6.0, target_modules=["linear_qkv", "*.experts.*"])),
    ],
)
def test_adapter_loads_in_peft_with_equal_logits(make_cfg, tokenizer, row, tmp_path, family, lora):
    model = adapted(lora, family)
    report = export(model, export_settings(make_cfg(peft=lora)), tokenizer, tmp_path / "hf")
    assert report.kind == "adapter"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "hf" / "base")
    use_published_limits(base)
    theirs = PeftModel.from_pretrained(base, tmp_path / "hf")
    live = logits_of(model, make_batch([row], "cpu"))
    assert relative(alone(theirs, [row])[0], live) < 1e-5
    with theirs.disable_adapter():
        assert relative(alone(theirs, [row])[0], live) > 1e-2


@pytest.mark.parametrize("merge", [False, True])
def test_rounding_is_told_apart_from_what_is_none(make_cfg, tokenizer, tmp_path, merge):
    oracle_of(make_model(ARCHITECTURES["qwen3"])).save_pretrained(tmp_path / "base")
    lora = LoraConfig(dim=4)
    model = build_model(ARCHITECTURES["qwen3"] | {"dtype": "bfloat16"}, "cpu", torch.bfloat16)
    load_weights(model, str(tmp_path / "base"))
    apply_lora(model, lora, seed=0)
    cfg = make_cfg(peft=lora, train={"precision": Precision.bf16})
    cfg.model.path = str(tmp_path / "base")
    cfg.export.merge = merge
    report = export(model, export_settings(cfg), tokenizer, tmp_path / "hf")
    assert report.kind == ("model" if merge else "adapter")
    assert 1e-3 < report.max_diff <= report.allowed_diff
    assert report.alike_diff is not None
    assert report.alike_diff < 1e-5
    assert report.rounding.endswith("the live model computing in bfloat16")
    assert report.rounding.startswith("weights rounded to bfloat16") is merge


def test_adapters_that_peft_refuses_are_written_with_a_note(make_cfg, tokenizer, tmp_path):
    lora = LoraConfig(dim=4, target_modules=["out_proj"])
    report = export(adapted(lora, "nano"), export_settings(make_cfg(peft=lora)), tokenizer, tmp_path / "hf")
    assert "export.merge=true" in str(report.note)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "hf" / "base")
    with pytest.raises(ValueError, match="out_proj"):
        PeftModel.from_pretrained(base, tmp_path / "hf")


def test_merged_export_equals_the_adapted_model(make_cfg, tokenizer, row, tmp_path):
    lora = LoraConfig(dim=4)
    model = adapted(lora)
    cfg = make_cfg(peft=lora)
    cfg.export.merge = True
    report = export(model, export_settings(cfg), tokenizer, tmp_path / "hf")
    assert report.kind == "model"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert relative(alone(theirs, [row])[0], logits_of(model, make_batch([row], "cpu"))) < 1e-5


def test_an_export_that_disagrees_is_refused_and_not_named(make_cfg, tokenizer, tmp_path, monkeypatch):
    wrong = oracle_of(make_model(ARCHITECTURES["qwen3"], seed=1)).state_dict()
    monkeypatch.setattr(
        exporting, "merged_tensors", lambda model, rounding=None: ((k, wrong[k]) for k in model.state_dict())
    )
    with pytest.raises(CheckpointError, match="does not match"):
        export(make_model(ARCHITECTURES["qwen3"]), export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_an_export_replaces_an_export_but_nothing_else(make_cfg, tokenizer, tmp_path):
    model = make_model(ARCHITECTURES["qwen3"])
    export(model, export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    export(model, export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(CheckpointError, match="not written by an export"):
        export(model, export_settings(make_cfg()), tokenizer, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_an_export_never_replaces_a_model_from_elsewhere_nor_a_file(make_cfg, tokenizer, tmp_path):
    model = make_model(ARCHITECTURES["qwen3"])
    oracle_of(model).save_pretrained(tmp_path / "theirs")
    (tmp_path / "chats.jsonl").write_text("{}")
    before = (tmp_path / "theirs" / "model.safetensors").read_bytes()
    for taken in ("theirs", "chats.jsonl"):
        with pytest.raises(CheckpointError, match="not written by an export"):
            export(model, export_settings(make_cfg()), tokenizer, tmp_path / taken)
    assert (tmp_path / "theirs" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("generic", [False, True])
def test_a_head_beside_a_tied_embedding_is_equal_or_refused(tmp_path, generic):
    oracle_of(make_model(ARCHITECTURES["qwen3"])).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, file, {"format": "pt"})
    model = build_model(ARCHITECTURES["qwen3"], "cpu", torch.float32, generic=generic)
    load_weights(model, str(tmp_path))
    head[-1, -1] += 1e-3
    save_file(tensors | {"lm_head.weight": head}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head.weight differs from .*tie_word_embeddings\": false"):
        load_weights(model, str(tmp_path))
    untied = build_model(ARCHITECTURES["qwen3"] | {"tie_word_embeddings": False}, "cpu", torch.float32, generic=generic)
    load_weights(untied, str(tmp_path))
    assert torch.equal(untied.head_weight, head)


@pytest.mark.parametrize(
    ("source", "written", "changed"),
    [
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"do_sample": False}, ["temperature", "top_p"]),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}, ["do_sample=true"]),
        ({"do_sample": True, "top_k": 20, "num_beams": 1, "length_penalty": 2.0}, {"top_k": 20}, ["length_penalty"]),
        ({"num_return_sequences": 3, "_from_model_config": True}, {}, ["num_return_sequences"]),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [2, 7]}, {"top_p": 0.95}, []),
    ],
)
def test_a_generation_config_that_contradicts_itself_is_mended(make_cfg, tokenizer, tmp_path, source, written, changed):
    model = make_model(ARCHITECTURES["qwen3"])
    oracle_of(model).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(source))
    cfg = make_cfg()
    cfg.model.path = str(tmp_path)
    mended, notes = generation_config(cfg.model, tokenizer)
    mended.save_pretrained(tmp_path / "hf")
    fields = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert fields.items() >= written.items()
    assert len(notes) == len(changed)
    for note, key in zip(notes, changed, strict=True):
        assert key in note
        assert "generation_config.json" in note
    assert fields["eos_token_id"] == list(
        dict.fromkeys([*tokenizer.end_of_turn_ids, tokenizer.eos_id, *source.get("eos_token_id", [])])
    )


def test_an_end_of_turn_that_is_not_one_token_becomes_a_stop_string(make_cfg):
    """No part of it becomes an end-of-generation id."""
    cfg = make_cfg()
    cfg.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<over>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = load_tokenizer(cfg)
    config, notes = generation_config(cfg.model, tokenizer)
    assert config.stop_strings == ["<over>"]
    assert config.eos_token_id == [tokenizer.eos_id]
    assert any("<over>" in note and "stop_strings" in note for note in notes)


def test_generation_fields_of_an_old_config_json_move_out_of_it(make_cfg, tokenizer, tmp_path):
    architecture = ARCHITECTURES["llama"] | {"temperature": 0.6, "do_sample": True}
    model = make_model(architecture)
    oracle_of(model).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").unlink()
    (tmp_path / "base" / "config.json").write_text(json.dumps(architecture))
    cfg = make_cfg()
    cfg.model.path = str(tmp_path / "base")
    export(model, export_settings(cfg), tokenizer, tmp_path / "hf")
    assert "temperature" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    assert GenerationConfig.from_pretrained(tmp_path / "hf").temperature == 0.6


def test_an_adapter_names_its_base_for_any_working_directory(make_cfg, tokenizer, tmp_path, monkeypatch):
    oracle_of(make_model(ARCHITECTURES["qwen3"])).save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    lora = LoraConfig(dim=4)
    cfg = make_cfg(peft=lora)
    for path, base in (("base", tmp_path / "base"), (None, tmp_path / "hf" / "base")):
        cfg.model.path = path
        export(adapted(lora), export_settings(cfg), tokenizer, Path("hf"))
        named = json.loads((tmp_path / "hf" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == str(base)


def test_missing_left_over_and_misshapen_weights_are_all_named(make_cfg, tokenizer, tmp_path):
    export(make_model(ARCHITECTURES["qwen3"]), export_settings(make_cfg()), tokenizer, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.7.surplus"] = tensors.pop("model.norm.weight")
    tensors["model.rotary_emb.inv_freq"] = torch.zeros(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    model = build_model(ARCHITECTURES["qwen3"], "cpu", torch.float32)
    with pytest.raises(ModelError) as caught:
        load_weights(model, str(tmp_path / "hf"))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "model.norm.weight is missing",
        "model.layers.7.surplus is not part of this model",
    ]
    wider = build_model(ARCHITECTURES["qwen3"] | {"vocab_size": 101}, "cpu", torch.float32)
    tensors["model.norm.weight"] = tensors.pop("model.layers.7.surplus")
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"embed_tokens.weight has shape \(97, 32\), but \(101, 32\) by config.json"):
        load_weights(wider, str(tmp_path / "hf"))
    with pytest.raises(ModelError, match="only safetensors"):
        load_weights(model, str(tmp_path))
