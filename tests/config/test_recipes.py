"""The recipes of `conf/experiment` say what the published documents say, which are read here, and each plans. That
twins of them train is in tests/runners."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_hydra.cli import command
from sft_hydra.config.serialize import flatten
from sft_hydra.paths import state_digest
from sft_hydra.schema.config import SftConfig

Resolved = Callable[..., SftConfig]


@pytest.fixture
def document(shared: Path) -> Callable[[str], str]:
    """document(number): the text of one published document."""
    return lambda number: next((shared / "spec").glob(f"{number}_*.md")).read_text()


@pytest.fixture
def values(resolved: Resolved) -> Callable[..., dict[str, Any]]:
    """values(*argv): key -> value of a recipe's config."""
    return lambda *argv: flatten(resolved(*argv, "dry_run=true"))


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A checkpoint as nanochat's documentation says it typically is."""
    step = tmp_path / "earlier/step_5"
    step.mkdir(parents=True)
    sizes = {"seq_length": 2048, "global_batch_size": 256, "micro_batch_size": 32}
    rates = {"lr": 0.004, "matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.004}
    (step / "state.json").write_text(json.dumps({"format": 1, "state": {"step": 5}, "sizes": sizes, "rates": rates}))
    (step / "COMPLETE").write_text(state_digest(step))
    return step


def number(pattern: str, text: str) -> float:
    """The one number that a pattern finds."""
    found = re.search(pattern, text)
    assert found, pattern
    return float(found[1].replace(",", ""))


def test_nano3(document, values) -> None:
    recipe, step, ours = document("000"), document("004"), values("experiment=nano3")
    assert ours["optimizer.lr"] == number(r"\*\*Learning Rate\*\* \| (\S+)", recipe)
    assert ours["seq_length"] == number(r"\*\*Sequence Length\*\* \| (\d+)", recipe)
    assert "`calculate_per_token_loss: true`" in recipe
    assert ours["train.calculate_per_token_loss"] is True
    assert "**Optimizer** | AdamW" in recipe
    assert ours["optimizer.kind"] == "adamw"
    assert ours["cluster.nodes"] == number(r"\nnodes = (\d+)", recipe)
    assert ours["cluster.gpus_per_node"] == number(r"\ngpus_per_node = (\d+)", recipe)
    assert ours["train.train_iters"] == number(r"peft: null, ([\d,]+)\s+training iterations", step)
    assert ours["peft"] is None
    assert ours["model.path"] in step
    for part in re.findall(
        r"Nemotron-[A-Z][\w-]+-v1(?=,| and|\.)", recipe.split("includes datasets from")[1].split("Results")[0]
    ):
        assert f"nvidia/{part}" in [value for key, value in ours.items() if key.startswith("data.sources.")]


def test_nano3_values_that_only_its_files_have(shared, values) -> None:
    facts, ours = (shared / "facts/nemotron.md").read_text(), values("experiment=nano3")
    row = re.search(r"\| train \| ([\d]+) iters, GBS \*\*(\d+)\*\*", facts)
    assert row
    assert (ours["train.train_iters"], ours["train.global_batch_size"]) == (int(row[1]), int(row[2]))
    layout = re.search(r"\| model \| TP(\d) PP(\d) \*\*CP(\d)\*\*", facts)
    assert layout
    assert [ours["parallel.tp"], ours["parallel.pp"], ours["parallel.cp"]] == [int(size) for size in layout.groups()]
    assert ours["scheduler.warmup_iters"] == number(r"\| scheduler \| lr_warmup_iters (\d+)", facts)
    assert ours["checkpoint.interval"] == number(r"nano3-sft-model, interval (\d+)", facts)


def test_nano3_lora(document, values) -> None:
    text, ours = document("003").split("`policy.megatron_cfg.peft` section")[1], values("experiment=nano3_lora")
    assert ours["peft.dim"] == number(r"\n +dim: (\d+)", text)
    assert ours["peft.alpha"] == number(r"\n +alpha: (\d+)", text)
    assert ours["peft.dropout"] == number(r"\n +dropout: (\S+)", text)
    assert f'dropout_position: "{ours["peft.dropout_position"]}"' in text
    assert f'lora_A_init_method: "{ours["peft.a_init"]}"' in text


def test_super3(document, values) -> None:
    text, ours = document("004"), values("experiment=super3")
    layout = re.search(r"start from a (\d+)-GPU plan with tp=(\d), pp=(\d), cp=(\d)", text)
    assert layout
    sizes = [ours["cluster.nodes"] * ours["cluster.gpus_per_node"]]
    sizes += [ours[f"parallel.{name}"] for name in ("tp", "pp", "cp")]
    assert sizes == [int(size) for size in layout.groups()]
    assert ours["model.path"] in text


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("seq-length", "seq_length"), ("micro-batch-size", "train.micro_batch_size"), ("train-samples", "train.train_samples"),
        ("lr-warmup-samples", "scheduler.warmup_samples"), ("lr", "optimizer.lr"), ("min-lr", "scheduler.min_lr"),
        ("clip-grad", "train.clip_grad"), ("weight-decay", "optimizer.weight_decay"), ("eval-interval", "eval.every"),
        ("save-interval", "checkpoint.interval"), ("log-interval", "train.log_interval"),
        ("num-layers", "model.architecture.num_hidden_layers"), ("hidden-size", "model.architecture.hidden_size"),
        ("ffn-hidden-size", "model.architecture.intermediate_size"), ("kv-channels", "model.architecture.head_dim"),
        ("num-query-groups", "model.architecture.num_key_value_heads"), ("rotary-base", "model.architecture.rope_theta"),
    ],
)  # fmt: skip
def test_megatron_tutorial(document, values, flag, key) -> None:
    command_of = document("001").split("### Option B")[1]
    assert values("experiment=qwen3_magpie")[key] == number(rf"--{flag} (\S+)", command_of)


def test_megatron_tutorial_words(document, values) -> None:
    text, ours = document("001").split("### Option B")[1], values("experiment=qwen3_magpie")
    assert ours["optimizer.betas"] == [number(r"--adam-beta1 (\S+)", text), number(r"--adam-beta2 (\S+)", text)]
    assert f"--lr-decay-style {ours['scheduler.kind']}" in text
    assert "--split 100,0,0" in text
    assert (ours["data.split.train"], ours["data.split.valid"]) == (1.0, 0.0)
    assert f'"{ours["data.sources.magpie.path"]}"' in text
    assert "--bf16" in text
    assert ours["train.precision"].value == "bf16"


def test_nanochat(document, values, earlier) -> None:
    text, ours = document("002"), values("experiment=nanochat", f"checkpoint.load={earlier}")
    for flag, key in {
        "mmlu-epochs": "data.sources.mmlu.epochs",
        "gsm8k-epochs": "data.sources.gsm8k.epochs",
        "num-iterations": "train.train_iters",
        "init-lr-frac": "optimizer.init_lr_frac",
        "warmup-ratio": "scheduler.warmup_ratio",
        "warmdown-ratio": "scheduler.decay_ratio",
        "final-lr-frac": "scheduler.min_lr_frac",
        "eval-every": "eval.every",
        "eval-tokens": "eval.tokens",
        "chatcore-every": "eval.chatcore_every",
        "chatcore-max-sample": "eval.chatcore_max_generative",
        "load-optimizer": "checkpoint.load_optimizer",
    }.items():
        assert ours[key] == number(rf'--{flag}\n\w+\ndefault:"(\S+)"', text), flag
    assert number(r'--chatcore-max-cat\n\w+\ndefault:"(\S+)"', text) == -1  # no limit
    assert ours["eval.chatcore_max_categorical"] is None
    assert ours["optimizer.weight_decay"] == number(r"SFT uses weight_decay=(\d\.\d)", text)
    assert ours["checkpoint.interval"] is None  # "Only the final checkpoint is saved"
    # "None = inherit": what the checkpoint was trained with
    assert ours["seq_length"] == number(r"typically (2048)\)", text)
    assert ours["train.micro_batch_size"] == number(r"--device-batch-size\n(?s:.){,120}?typically (\d+)\)", text)
    assert ours["train.global_batch_size"] * ours["seq_length"] == number(r"typically (524288)\)", text)
    for name in ("matrix", "embedding", "unembedding"):
        assert ours[f"optimizer.{name}_lr"] == number(rf"--{name}-lr\n(?s:.){{,180}}?typically (0\.\d+)\)", text), name


def test_nemo_rl(document, shared, values, earlier) -> None:
    (earlier.parent / "chats.jsonl").touch()
    ours = values("experiment=nemo_rl", "model=qwen3_0_6b", "data=jsonl", f"data.path={earlier.parent}/chats.jsonl")
    assert ours["data.split.valid"] == number(r"split_validation_size: (\S+)", document("003"))
    line = next(
        line for line in (shared / "facts/nemotron.md").read_text().splitlines() if line.startswith("NeMo-RL sft.yaml")
    )
    assert ours["train.train_iters"] == number(r"/ (\d+) steps", line)
    assert ours["train.global_batch_size"] == number(r"GBS (\d+)", line)
    assert ours["seq_length"] == number(r"seq (\d+)", line)
    assert ours["optimizer.lr"] == number(r"AdamW (\S+),", line)
    assert ours["optimizer.eps"] == number(r"eps (\S+),", line)
    assert ours["optimizer.weight_decay"] == number(r"wd (\S+),", line)
    assert ours["optimizer.betas"] == [number(r"β (\.\d+)/", line), number(r"β \.\d+/(\.\d+)", line)]
    assert ours["checkpoint.keep_last"] == number(r"keep_top_k (\d) by val loss", line)
    assert ours["checkpoint.keep_best"] == "val/loss"


def test_step_default_and_tiny(document, shared, values) -> None:
    text, facts = document("004"), (shared / "facts/nemotron.md").read_text()
    ours, tiny = values("experiment=step_default"), values("experiment=step_tiny", "data.packed_dir=packed")
    assert "LoRA enabled (peft: lora)" in text
    assert ours["peft.dim"] == 32
    assert tiny["peft"] is None
    row = re.search(r"\| (\d+) iters, GBS (\d+), MBS (\d) \|", facts)
    assert row
    for cfg in (ours, tiny):
        assert cfg["seq_length"] == number(r"Default: (4096)\.", text)
        sizes = [cfg[f"train.{name}"] for name in ("train_iters", "global_batch_size", "micro_batch_size")]
        assert sizes == [int(size) for size in row.groups()]
        assert cfg["cluster.nodes"] == 2  # "Two-node Slurm functional-test configuration"
        assert cfg["checkpoint.interval"] == number(r"sft-tiny-2node, interval (\d)", facts)
        assert cfg["model.path"] in text


@pytest.mark.parametrize("name", ["nano3", "super3", "step_default"])
def test_a_recipe_for_slurm_plans_without_a_network(
    name: str, empty_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert command([f"experiment={name}", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    for line in ("parameters", "layout", "steps", "memory", "compute", "time", "#SBATCH --nodes="):
        assert line in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=nano3_lora"], ["experiment=qwen3_magpie"], ["experiment=step_tiny", "data.packed_dir=packed"],
        ["experiment=nemo_rl", "model=qwen3_0_6b", "data=jsonl", "data.path=chats.jsonl"],
        ["experiment=nanochat", "model=qwen3_0_6b", "checkpoint.load={earlier}"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_every_other_recipe_plans_with_its_estimates(
    arguments: list[str],
    earlier: Path,
    empty_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("chats.jsonl").touch()
    assert command([*(text.format(earlier=earlier) for text in arguments), "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^memory +about [\d.]+ GiB per rank at the peak in bf16: weights [\d.]+, gradients ", shown, re.M)
    assert re.search(r"^compute +[\d.]+ GFLOP per token, [\d.]+ TFLOP per step$", shown, re.M)
    assert re.search(r"^steps +([\d,]+|one epoch .*)$", shown, re.M)
    if "one epoch" not in shown:
        assert "at an assumed MFU of 40%" in shown
