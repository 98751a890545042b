"""New tokens: tokenizer, embedding and head grow; beside LoRA their rows, or whole tables, train as in the peft library."""

import json

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from support.configs import make_cfg
from support.generic import generic
from support.packed import ARCHITECTURES, alone, logits_of, make_model, make_row, oracle_of, relative
from transformers import AutoTokenizer

from sft_hydra.chat.tokenizer import NewTokens, load_tokenizer
from sft_hydra.checkpoint.adapter import load_adapter, write_adapter
from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.config.adapter import adopt_adapter
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.errors import ModelError
from sft_hydra.models.build import as_transformers, build_model
from sft_hydra.models.lora import apply_lora
from sft_hydra.schema.peft import LoraConfig

ROWS = [make_row([8, 1, 30], seed=4)]
IDS = tuple(sorted({int(id_) for id_ in ROWS[0].input_ids[3:9]}, reverse=True))  # of tokens that are there
WHOLE = {"modules_to_save": ["embed_tokens", "lm_head"]}
FEW = {"trainable_new_tokens": True}
CASES = [
    ("qwen3", WHOLE),
    ("llama", WHOLE),
    ("nano", WHOLE),
    ("qwen3", FEW),
    ("llama", FEW),
    ("nano", FEW),
    ("olmo2", FEW),
    ("gemma2", WHOLE),
]


def base_of(family):
    return make_model(ARCHITECTURES[family]) if family in ARCHITECTURES else generic(family)


def adapted(family, options):
    """A model of ours with random adapters and tables, its config of LoRA, and what of it is trained."""
    model = base_of(family)
    lora = LoraConfig(dim=4, alpha=6.0, target_modules=["q_proj"], **options)
    apply_lora(model, lora, seed=0, token_ids=IDS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model, lora, trained


@pytest.mark.parametrize(("family", "options"), CASES, ids=str)
def test_what_is_trained_loads_in_the_peft_library_with_its_logits_and_gradients(family, options, tmp_path):
    model, lora, trained = adapted(family, options)
    write_adapter(model.config, trained, lora, "base", tmp_path, IDS)
    theirs = PeftModel.from_pretrained(oracle_of(base_of(family)), tmp_path, is_trainable=True).eval()
    expected_logits, expected = alone(theirs, ROWS)
    batch = make_batch(ROWS, "cpu")
    assert relative(logits_of(model, batch), expected_logits) < 1e-5
    assert relative(alone(as_transformers(model), ROWS)[0], expected_logits) < 1e-5
    loss, _ = forward_loss(model, batch)
    loss.backward()
    expected.backward()
    assert relative(loss, expected) < 1e-6
    folder = tmp_path / "gradients"
    folder.mkdir()
    write_adapter(model.config, {name: p.grad for name, p in trained.items()}, lora, "base", folder, IDS)
    mine = load_file(folder / "adapter_model.safetensors")
    other = {
        name.replace(".modules_to_save.default", "").replace(".default", ""): p.grad
        for name, p in theirs.named_parameters()
        if p.grad is not None
    }
    tied = {"base_model.model.lm_head.weight"} if model.tied_head and options is WHOLE else set()
    assert mine.keys() == other.keys() | tied
    for name, gradient in other.items():
        assert relative(mine[name], gradient) < 1e-5, name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(("family", "options"), CASES[:6], ids=str)
def test_an_adapter_of_the_peft_library_is_gone_on_from(family, options, tmp_path):
    names = ["embeddings" if family == "nano" else "embed_tokens"]
    model = base_of(family)
    tied = model.config.tie_word_embeddings
    names += [] if tied else ["lm_head"]
    asked = (
        {"trainable_token_indices": {name: list(IDS) for name in names}}
        if options is FEW
        else {"modules_to_save": names}
    )
    made = PeftConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=6,
        target_modules=["q_proj"],
        ensure_weight_tying=tied and options is WHOLE,
        **asked,
    )
    theirs = get_peft_model(oracle_of(model), made).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    vocabulary = {"added_tokens": [{"id": id_, "content": f"<{id_}>", "special": id_ == IDS[0]} for id_ in IDS]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    cfg = make_cfg(peft=LoraConfig(path=str(tmp_path)))
    cfg.model.path = "base"
    assert adopt_adapter(cfg, []) == []
    if options is FEW:
        assert cfg.tokenizer.add_special_tokens == [f"<{IDS[0]}>"]
        assert cfg.tokenizer.add_tokens == [f"<{id_}>" for id_ in IDS[1:]]
    apply_lora(model, cfg.peft, seed=0, token_ids=(*IDS[1:], IDS[0]))  # type: ignore[arg-type]
    load_adapter(model, str(tmp_path))
    assert relative(logits_of(model, make_batch(ROWS, "cpu")), alone(theirs, ROWS)[0]) < 1e-5


def test_an_adapter_that_unties_the_head_is_refused(tmp_path):
    model, lora, trained = adapted("qwen3", WHOLE)
    write_adapter(model.config, trained, lora, "base", tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ensure_weight_tying": False}))
    with pytest.raises(ModelError, match="ensure_weight_tying=true"):
        load_adapter(model, str(tmp_path))


def test_a_tokenizer_gets_tokens_as_transformers_reads_them(tmp_path):
    cfg = make_cfg()
    before = load_tokenizer(cfg)
    cfg.tokenizer.add_tokens, cfg.tokenizer.add_special_tokens = ["<note>", "a"], ["<|tool|>"]
    tokenizer = load_tokenizer(cfg)
    assert load_tokenizer(cfg).folder == tokenizer.folder
    known = before.vocab_size
    there = before.backend.token_to_id("a")
    assert tokenizer.new_tokens.ids == (known, there, known + 1)
    assert tokenizer.new_tokens.known == known
    assert tokenizer.vocab_size == known + 2
    assert tokenizer.identity != before.identity
    tokenizer.save_files(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "why <note>because</think> a <|tool|>"
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert len(theirs) == tokenizer.vocab_size
    kept = theirs.decode([known, known + 1], skip_special_tokens=True)
    assert "<note>" in kept
    assert "<|tool|>" not in kept


def grown(folder, family, *, known, ids, size):
    """The model in a folder, with `size` rows in its tables."""
    architecture = ARCHITECTURES[family] | {"vocab_size": size}
    model = build_model(architecture, "cpu", torch.float32)
    load_weights(model, str(folder), new_tokens=NewTokens(ids, known))
    return model


@pytest.mark.parametrize("family", ["qwen3", "llama", "nano"])
def test_new_rows_start_as_the_mean_of_all_others(family, tmp_path):
    """Id 95 has a row that no token used, 97 and 98 have none."""
    oracle = oracle_of(make_model(ARCHITECTURES[family]))
    oracle.save_pretrained(tmp_path)
    model = grown(tmp_path, family, known=95, ids=(95, 97, 98), size=99)
    oracle.resize_token_embeddings(99, mean_resizing=False)
    for table in {oracle.get_input_embeddings().weight, oracle.get_output_embeddings().weight}:
        with torch.no_grad():
            table[[95, 97, 98]] = table[:95].mean(0)
    assert relative(logits_of(model, make_batch(ROWS, "cpu")), alone(oracle, ROWS)[0]) < 1e-5
    assert (model.head_name == model.embedding_name) == oracle.config.tie_word_embeddings
    with pytest.raises(ModelError, match=r"has shape \(97, 32\), but \(99, 32\) by config.json"):
        load_weights(model, str(tmp_path))
