"""Every layout trains like one process: losses, norms, gradients and weights of three optimizer steps."""

import dataclasses

import pytest
from support.packed import relative
from support.ranks import run_ranks
from support.training import Case, Outcome, train

from sft_hydra.planning.layout import Layout
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.train import Recompute

# (world, sizes that are not one); the first of each list are the quick ones
DENSE = [
    (4, {"tp": 2, "cp": 2}),
    (2, {}),
    (2, {"dp_replicate": 2}),
    (2, {"tp": 2}),
    (2, {"cp": 2}),
    (3, {}),
    (4, {"dp_replicate": 2}),
    (4, {"tp": 2}),
    (4, {"cp": 2}),
    (4, {"tp": 4}),  # more ranks than key-value heads
    (4, {"cp": 4}),
    (4, {"tp": 2, "dp_replicate": 2}),
    (4, {"cp": 2, "dp_replicate": 2}),
    (8, {}),
    (8, {"cp": 8}),  # more ranks than heads
    (8, {"cp": 4, "tp": 2}),
    (8, {"cp": 2, "tp": 4}),
    (8, {"cp": 2, "tp": 2}),
    (8, {"cp": 2, "tp": 2, "dp_replicate": 2}),
]
EXPERTS = [
    (4, {"cp": 2, "tp": 2, "ep": 4}),
    (2, {"ep": 2}),
    (2, {"tp": 2, "ep": 2}),
    (2, {"cp": 2, "ep": 2}),
    (2, {}),
    (4, {"ep": 4}),
    (4, {"ep": 2, "dp_replicate": 2}),
    (4, {"tp": 4, "ep": 2}),
    (4, {"cp": 4, "ep": 4}),
    (8, {"ep": 8}),
    (8, {"cp": 8, "ep": 2}),
    (8, {"cp": 4, "tp": 2, "ep": 8}),
    (8, {"cp": 2, "tp": 2, "ep": 2, "dp_replicate": 2}),
]
STAGES = [
    (4, {"pp": 2, "tp": 2}),
    (2, {"pp": 2}),
    (4, {"pp": 2}),
    (4, {"pp": 2, "cp": 2}),
    (4, {"pp": 2, "dp_replicate": 2}),
    (8, {"pp": 2, "cp": 2, "tp": 2}),
    (8, {"pp": 2, "dp_replicate": 2, "tp": 2}),
]
STAGES_OF_EXPERTS = [
    (4, {"pp": 2, "ep": 2}),
    (8, {"pp": 2, "cp": 2, "tp": 2, "ep": 4}),
    (8, {"pp": 4, "ep": 2}),
    (8, {"pp": 2, "tp": 2, "ep": 2}),
]


def interleaved(shapes):
    """The same with two stages on each pipeline rank."""
    return [(world, sizes | {"vp": 2}) for world, sizes in shapes]


MOE_SIX = [(world, sizes) for world, sizes in EXPERTS if 6 % sizes.get("ep", 1) == 0]
LORA = LoraConfig(dim=4, alpha=8.0)
DORA = dataclasses.replace(LORA, use_dora=True)
EXPERTS_LORA = dataclasses.replace(LORA, target_modules=["q_proj", "*.experts.*"])
QLORA = dataclasses.replace(LORA, quantize_base="nf4")
EXPERTS_QLORA = dataclasses.replace(EXPERTS_LORA, quantize_base="nf4")
WITHOUT_TP = [(2, {}), (2, {"cp": 2}), (2, {"pp": 2}), (4, {"dp_replicate": 2}), (3, {})]
PISSA_LORA = dataclasses.replace(LORA, init_lora_weights="pissa")
ROWS_LORA = dataclasses.replace(LORA, trainable_new_tokens=True)
TABLES_LORA = dataclasses.replace(LORA, modules_to_save=["embed_tokens", "lm_head"])
CASES = {
    "qwen3": (Case("qwen3"), DENSE),
    "llama": (Case("llama"), DENSE),
    "window": (Case("mistral_window"), DENSE[:11]),
    "odd heads": (Case("qwen3", architecture={"num_attention_heads": 6}), [(4, {"cp": 4}), (8, {"cp": 4, "tp": 2})]),
    "qwen3_moe": (Case("qwen3_moe"), DENSE[:12] + MOE_SIX + STAGES_OF_EXPERTS[3:]),
    "nano": (Case("nano"), DENSE + EXPERTS),
    "super": (Case("super"), EXPERTS + DENSE[:4] + STAGES_OF_EXPERTS),
    "empty experts": (Case("nano", lonely=True), [EXPERTS[0], (4, {"ep": 4}), (8, {"ep": 8})]),
    "lora": (Case("qwen3", lora=LORA), DENSE),
    "dora": (Case("llama", lora=DORA), [(4, {"tp": 2}), (2, {}), (2, {"tp": 2}), (2, {"pp": 2}), (4, {"tp": 4})]),
    "noise": (
        Case("qwen3", train={"neftune_alpha": 10.0}),
        [(4, {"tp": 2, "cp": 2}), (2, {}), (2, {"pp": 2}), (2, {"tp": 2})],
    ),
    "noise gemma2": (Case("gemma2", train={"neftune_alpha": 10.0}), [(2, {})]),
    "pissa": (Case("llama", lora=PISSA_LORA), [(4, {"tp": 2}), (2, {"pp": 2})]),
    "pissa dora": (Case("qwen3", lora=dataclasses.replace(PISSA_LORA, use_dora=True)), [(4, {"tp": 2})]),
    "dora recompute": (Case("qwen3", lora=DORA, train={"recompute": Recompute.selective}), [(2, {}), (2, {"tp": 2})]),
    "dora nano": (
        Case("nano", lora=dataclasses.replace(DORA, target_modules=["in_proj", "out_proj", "q_proj"])),
        EXPERTS[:3],
    ),
    "new tokens": (
        Case("qwen3", lora=ROWS_LORA, token_ids=(90, 3, 17)),
        [(4, {"pp": 2, "tp": 2}), (4, {}), (2, {"tp": 2})],
    ),
    "new tokens untied": (Case("llama", lora=ROWS_LORA, token_ids=(90, 3, 17)), [(4, {"tp": 2}), (2, {"pp": 2})]),
    "whole tables": (Case("llama", lora=TABLES_LORA), [(4, {"tp": 2}), (2, {"pp": 2})]),
    "whole tables tied": (Case("qwen3", lora=TABLES_LORA), [(4, {"tp": 2}), (2, {"pp": 2})]),
    "lora biased": (Case("llama", lora=LORA), DENSE[:6]),
    "lora nano": (Case("nano", lora=LORA), EXPERTS),
    "lora experts": (Case("nano", lora=EXPERTS_LORA), EXPERTS + DENSE[:4]),
    "lora experts gated": (Case("qwen3_moe", lora=EXPERTS_LORA), MOE_SIX[:6]),
    "qlora": (Case("qwen3", lora=QLORA), WITHOUT_TP),
    "qlora experts": (
        Case("nano", lora=EXPERTS_QLORA),
        [(2, {"ep": 2}), (4, {"ep": 2, "cp": 2}), (4, {"ep": 2, "pp": 2})],
    ),
    "qlora int8": (Case("qwen3_moe", lora=dataclasses.replace(QLORA, quantize_base="int8")), [(2, {"ep": 2}), (2, {})]),
    "qlora recompute": (Case("llama", lora=QLORA, train={"recompute": Recompute.selective}), WITHOUT_TP[:1]),
    "qlora offload": (Case("qwen3", lora=QLORA, train={"cpu_offload": True}), WITHOUT_TP[:1]),
    "qlora phi3": (Case("phi3", lora=QLORA), WITHOUT_TP[:1]),
    "frozen": (Case("qwen3", train={"freeze": ["embed_tokens", "model.layers.0.*"]}), [(2, {"pp": 2}), *DENSE[:4]]),
    "frozen but last": (Case("llama", train={"trainable": ["*.layers.2.*", "lm_head"]}), [(2, {"pp": 2}), *DENSE[:3]]),
    "frozen but first": (Case("qwen3", train={"trainable": ["*.layers.0.mlp"]}), [(2, {"pp": 2}), (2, {})]),
    "frozen experts": (Case("nano", train={"freeze": ["*.experts.*", "gate", "norm"]}), [*EXPERTS[:3], (2, {"pp": 2})]),
    "frozen recompute": (Case("qwen3", train={"freeze": ["layers.0"], "recompute": Recompute.full}), [(2, {})]),
    "balancing loss": (
        Case("qwen3_moe", train={"router_aux_loss": 0.5}),
        [(4, {"cp": 2, "ep": 2}), *MOE_SIX, (3, {}), (2, {"pp": 2}), (4, {"pp": 2, "ep": 2})],
    ),
    "balancing loss interleaved": (
        Case("qwen3_moe", architecture={"num_hidden_layers": 4}, train={"router_aux_loss": 0.5}),
        interleaved([(2, {"pp": 2})]),
    ),
    "moving bias": (
        Case("nano", train={"router_bias_update_rate": 0.02}),
        [(4, {"cp": 2, "ep": 4}), *EXPERTS[:8], (2, {"pp": 2}), (4, {"pp": 2, "ep": 2})],
    ),
    "moving bias of three rows": (
        Case("nano", train={"router_bias_update_rate": 0.02, "global_batch_size": 3}),
        [(2, {"pp": 2})],
    ),
    "pipeline": (Case("qwen3"), STAGES),
    "pipeline untied": (Case("llama"), STAGES[:3]),
    "pipeline moe": (Case("qwen3_moe", architecture={"num_hidden_layers": 4}), STAGES_OF_EXPERTS[2:3]),
    "pipeline nano": (Case("nano"), STAGES_OF_EXPERTS),
    "pipeline lora": (Case("nano", lora=LORA), STAGES_OF_EXPERTS),
    "pipeline recompute": (Case("nano", train={"recompute": Recompute.full}), STAGES_OF_EXPERTS[:2]),
    "pipeline of three rows": (Case("qwen3", train={"global_batch_size": 3}), STAGES[:3]),
    "interleaved": (Case("qwen3", architecture={"num_hidden_layers": 5}), interleaved(STAGES[:5])),
    "interleaved nano": (Case("nano"), interleaved(STAGES_OF_EXPERTS[:2])),
    "micro-batches of two": (Case("qwen3", train={"micro_batch_size": 2}), DENSE[:5]),
    "more ranks than rows": (Case("qwen3", train={"global_batch_size": 2}), [(3, {}), (8, {"cp": 2})]),
    "per sequence": (Case("nano", train={"calculate_per_token_loss": False}), EXPERTS[:3]),
    "recompute": (Case("nano", train={"recompute": Recompute.full}), EXPERTS[:4]),
    "recompute half": (Case("super", train={"recompute": Recompute.selective}), EXPERTS[:4]),
    "gemma2": (Case("gemma2"), [(2, {}), (4, {"dp_replicate": 2}), (3, {})]),
    "cohere": (Case("cohere"), [(2, {}), (4, {"dp_replicate": 2})]),
    "lora phi3": (Case("phi3", lora=LORA), [(2, {}), (4, {"dp_replicate": 2})]),
    "recompute granite": (Case("granite", train={"recompute": Recompute.full}), [(2, {})]),
    "offload": (Case("qwen3", train={"cpu_offload": True}), DENSE[:3]),
}
QUICK = [
    "pipeline",
    "interleaved nano",
    "qwen3",
    "nano",
    "super",
    "lora",
    "dora",
    "new tokens",
    "noise",
    "odd heads",
    "more ranks than rows",
    "recompute",
    "gemma2",
    "lora experts",
    "qlora",
    "balancing loss",
    "moving bias",
]


def layouts():
    for name, (case, shapes) in CASES.items():
        for i, (world, sizes) in enumerate(shapes):
            label = ",".join([f"world={world}", *(f"{key}={size}" for key, size in sizes.items())])
            marks = [] if name in QUICK and i == 0 else [pytest.mark.distributed]
            yield pytest.param(case, world, sizes, id=f"{name}:{label}", marks=marks)


@pytest.mark.parametrize(("case", "world", "sizes"), layouts())
def test_trains_like_one_process(one_process, case, world, sizes):
    expected = one_process(case)
    outcomes = run_ranks(world, train, case, Layout(gpus_per_node=world, **sizes))
    for outcome in outcomes:
        same_results(outcome, expected)
    gradients = {name: tensor for outcome in outcomes for name, tensor in outcome.gradients.items()}
    parameters = {name: tensor for outcome in outcomes for name, tensor in outcome.parameters.items()}
    assert gradients.keys() == expected.gradients.keys()
    assert parameters.keys() == expected.parameters.keys()
    tolerance = 1e-5 if case.dtype.itemsize == 4 else 1e-6
    for name, gradient in expected.gradients.items():
        assert relative(gradients[name], gradient) < tolerance, name
    for name, parameter in expected.parameters.items():
        assert relative(parameters[name], parameter) < 1e-4, name


def same_results(outcome: Outcome, expected: Outcome) -> None:
    """What a rank says of its steps is what one process says."""
    for result, other in zip(outcome.results, expected.results, strict=True):
        assert result.loss == pytest.approx(other.loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
        assert result.source_losses == pytest.approx(other.source_losses, rel=1e-5)
        assert (result.router_aux_loss or 0.0) == pytest.approx(other.router_aux_loss or 0.0, rel=1e-6)
        assert (result.tokens, result.trained_tokens) == (other.tokens, other.trained_tokens)
