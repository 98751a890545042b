"""Models of other families through the real command: ranks, stop and resume, exports, adapters, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from support.generic import FAMILIES, LEAKING
from transformers import AutoConfig, AutoModelForCausalLM

SHORT = [
    "model=hf",
    "tokenizer.path=demo",
    "seq_length=512",
    "data.sample=200",
    "train.global_batch_size=4",
    "train.log_interval=1",
    "optimizer.lr=1e-3",
    "eval.every=0",
    "eval.samples=[]",
    "eval.exact_match.path=null",
]


def folder_of(family: str, parent: Path) -> Path:
    """A model's folder as transformers writes it."""
    torch.manual_seed(0)
    sizes = {**FAMILIES, **LEAKING}[family] | {"vocab_size": 800}
    positions = "n_positions" if "n_positions" in sizes else "max_position_embeddings"
    config = AutoConfig.for_model(family, **sizes | {positions: 512})
    AutoModelForCausalLM.from_config(config).save_pretrained(parent / family)
    return parent / family


def command(model: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    where = [f"model.path={model}", f"output_dir={model.parent}", f"name={name}"]
    return subprocess.run(
        [sys.executable, "-m", "sft_hydra", *SHORT, *where, *overrides],
        capture_output=True,
        text=True,
        check=False,
    )


def train(model: Path, name: str, *overrides: str) -> list[float]:
    """Losses of all steps of the run."""
    done = command(model, name, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (model.parent / name / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def shapes(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@pytest.mark.slow
def test_two_ranks_stop_and_one_goes_on(tmp_path: Path) -> None:
    model = folder_of("gpt_neox", tmp_path)  # whose files have other names than transformers computes with
    one = train(model, "one", "train.train_iters=4", "scheduler=constant", "export.auto=false")
    train(model, "two", "train.train_iters=2", "scheduler=constant", "export.auto=false", "cluster.gpus_per_node=2")
    resumed = train(model, "two", "train.train_iters=4", "scheduler=constant")
    assert resumed == pytest.approx(one, rel=1e-5)
    assert one[3] < one[0]
    assert shapes(tmp_path / "two" / "hf") == shapes(model)
    _, said = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "hf", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.slow
def test_adapters_of_two_ranks_are_loaded_by_peft(tmp_path: Path) -> None:
    model = folder_of("gemma2", tmp_path)
    lora = ["peft=lora", "train.train_iters=2", "train.recompute=full", "cluster.gpus_per_node=2"]
    done = command(model, "lora", *lora)
    assert done.returncode == 0, done.stdout + done.stderr
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "lora" / "hf"))
    assert sum(name.endswith("lora_B.default.weight") for name, _ in adapted.named_parameters()) == 7 * 2


@pytest.mark.distributed
def test_without_packing_what_leaks_trains(tmp_path: Path) -> None:
    model = folder_of("bamba", tmp_path)
    refused = command(model, "packed", "train.train_iters=2")
    assert refused.returncode != 0
    assert "model_type 'bamba' leaks across packed conversations" in refused.stderr + refused.stdout
    assert len(train(model, "alone", "train.train_iters=2", "data.packing=none", "eval.every=1")) == 2
    assert (tmp_path / "alone" / "hf" / "model.safetensors").is_file()


def test_a_dry_run_plans_families_with_names_of_their_own(tmp_path: Path) -> None:
    plan = command(folder_of("gpt2", tmp_path), "plan", "dry_run=true")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "memory" in plan.stdout
