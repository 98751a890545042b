"""Families of transformers that are not ours, through transformers' own layers: packed rows equal conversations alone.

Every case is a real family with random weights, of two kinds: what packs, and what must be refused.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.generic import FAMILIES, LEAKING, generic
from support.packed import PACKINGS, alone, gradients, logits_of, make_row, oracle_gradients, oracle_of, relative

from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.errors import ConfigError, ModelError
from sft_hydra.models import build
from sft_hydra.models.hf.check_contamination import check_contamination
from sft_hydra.models.lora import add_adapters
from sft_hydra.models.lora_layers import LoraLinear
from sft_hydra.planning.architecture import FAMILIES as OURS
from sft_hydra.schema.peft import LoraConfig

ROWS = [make_row(PACKINGS["many_tiny"], seed=1), make_row([5, 17], seed=2)]


def equals_alone(model: Any, folder: Path) -> None:
    """Logits, loss and all gradients are those of the transformers model that sees one conversation at a time."""
    oracle = oracle_of(model)
    batch = make_batch(ROWS, "cpu")
    expected_logits, expected_loss = alone(oracle, ROWS)
    assert relative(logits_of(model, batch), expected_logits) < 1e-5
    loss, _ = forward_loss(model, batch)
    assert relative(loss, expected_loss) < 1e-6
    loss.backward()
    expected_loss.backward()
    expected, actual = oracle_gradients(oracle, folder), gradients(model)
    assert actual.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in actual.items():
        # without rotary positions, a bias of keys changes nothing: its gradient is rounding
        rounding = name.endswith("k_proj.bias") and float(gradient.abs().max()) < 1e-6 * largest
        assert rounding or relative(gradient, expected[name]) < 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_alone(family: str, tmp_path: Path) -> None:
    model = generic(family)
    check_contamination(model)
    equals_alone(model, tmp_path)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "phi3"])
def test_other_conversations_are_bit_identical_when_one_changes(family: str) -> None:
    model, row = generic(family), make_row(PACKINGS["many_tiny"], seed=3)
    start, end = int(row.seq_start_id[4]), int(row.seq_start_id[5])
    with torch.no_grad():
        before = logits_of(model, make_batch([row], "cpu"))
        row.input_ids[start:end] = row.input_ids[start:end][::-1]
        after = logits_of(model, make_batch([row], "cpu"))
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[end:], after[end:])
    assert not torch.equal(before[start:end], after[start:end])


@pytest.mark.parametrize("family", LEAKING)
def test_what_leaks_is_refused_and_trains_without_packing(family: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"data\.packing=none"):
        check_contamination(generic(family))
    equals_alone(generic(family, packed=False), tmp_path)


def test_a_packed_model_that_mixes_tokens_is_found_out() -> None:
    """What the probe is for: a layer that passes on what came before, in a family that is otherwise fine."""
    model = generic("olmo2")
    block = model.blocks[1]
    plain = block.forward
    block.forward = lambda hidden, *args, **kwargs: plain(hidden + 1e-3 * hidden.roll(1, 1), *args, **kwargs)
    with pytest.raises(ModelError, match="'olmo2' leaks across packed conversations"):
        check_contamination(model)


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("phi", {}, "lm_head has a bias"),
        ("gpt_oss", {"num_local_experts": 4}, "mixture of experts"),
        ("gemma3", {}, "is multimodal"),
        ("qwen3_5_text", {}, "transforms its weights on load"),
        ("llama", {"is_causal": False}, "uses an attention mask"),
        ("t5", {}, "no causal language model"),
        ("no_such_family", {}, "not supported by transformers"),
    ],
)
def test_what_cannot_be_trained_exactly_is_refused(family: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_contamination(generic(family, **fields))


def test_families_of_ours_are_those_the_config_knows() -> None:
    assert set(OURS) == set(build.FAMILIES)


def test_dropout_of_a_config_is_off() -> None:
    model = generic("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).train()
    batch = make_batch(ROWS, "cpu")
    assert torch.equal(logits_of(model, batch), logits_of(model, batch))


def test_our_own_families_through_transformers(tmp_path: Path) -> None:
    equals_alone(generic("qwen3", tie_word_embeddings=True), tmp_path)


def test_a_model_without_linear_layers_takes_no_adapters() -> None:
    with pytest.raises(
        ConfigError, match=r"no layer of this model can have a LoRA adapter \(model_type gpt2, 0 linear layers"
    ):
        add_adapters(generic("gpt2"), LoraConfig())


@pytest.mark.parametrize(("targets", "count"), [(None, 14), (["linear_qkv"], 6), (["*.0.*_proj"], 7), ([], 14)])
def test_adapters_go_where_the_config_says(targets: list[str] | None, count: int) -> None:
    model = generic("gemma2")
    add_adapters(model, LoraConfig(target_modules=targets))
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == count


def test_files_of_a_model_without_its_head_are_read(tmp_path: Path) -> None:
    """Older folders hold the trunk alone, under names that lack its own; and tables that nobody needs any more."""
    theirs = oracle_of(generic("gpt2"))
    tensors = {name: tensor.clone() for name, tensor in theirs.transformer.state_dict().items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1)}, tmp_path / "model.safetensors")
    model = build.build_model(theirs.config.to_dict(), "cpu", torch.float32)
    load_weights(model, str(tmp_path))
    batch = make_batch(ROWS, "cpu")
    assert relative(logits_of(model, batch), alone(theirs, ROWS)[0]) < 1e-5


def test_learnt_positions_are_known() -> None:
    assert generic("gpt2").learned_positions == 256
    assert generic("opt").learned_positions == 256
    assert generic("olmo2").learned_positions is None


def test_rope_by_length_is_plain_below_it(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 5.0, 6.0, 7.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 128, **factors}
    equals_alone(generic("phi3", rope_parameters=rope, max_position_embeddings=512), tmp_path)
