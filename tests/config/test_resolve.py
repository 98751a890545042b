"""Names, folders, a user's own YAML, and what the sections become."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import AdamW, Muon
from sft_hydra.schema.peft import LoraConfig

Resolved = Callable[..., SftConfig]


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "demo"),
        (["runner=generate", "generate.prompts=[hi]", "device=cpu"], "demo"),
        (["runner=inspect", "inspect.count=1"], "demo"),
        (["train.train_iters=5"], "tiny-demo-full"),
        (["peft=lora"], "tiny-demo-lora"),
        (["model=nano3", "peft=lora", "dry_run=true"], "nano3-demo-lora"),
        (["name=mine", "peft=lora"], "mine"),
    ],
)
def test_name(argv: list[str], name: str, resolved: Resolved) -> None:
    cfg = resolved(*argv)
    assert (cfg.name, cfg.run_dir) == (name, f"outputs/{name}")


def test_output_dir_is_the_parent(resolved: Resolved) -> None:
    assert resolved("output_dir=elsewhere").run_dir == "elsewhere/demo"


def test_variants_follow_their_groups(resolved: Resolved) -> None:
    assert resolved("optimizer=adamw").optimizer == AdamW(lr=1e-2, betas=[0.9, 0.98])
    assert isinstance(resolved().optimizer, Muon)
    assert resolved("peft=null").peft is None
    assert resolved("peft=lora", "peft.dim=8").peft == LoraConfig(dim=8)


def test_experiment_wins_over_groups_and_the_command_over_it(resolved: Resolved) -> None:
    cfg = resolved("experiment=nano3_lora", "train.train_iters=7", "dry_run=true")
    assert (cfg.model.name, cfg.data.name, cfg.optimizer.lr, cfg.train.train_iters) == (
        "nano3", "nemotron_post_training", 1e-4, 7,
    )  # fmt: skip
    assert cfg.peft is not None


def test_experiment_may_choose_slurm(resolved: Resolved) -> None:
    cfg = resolved("experiment=super3", "dry_run=true")
    assert (cfg.cluster.kind.value, cfg.cluster.nodes, cfg.parallel.tp, cfg.parallel.pp) == ("slurm", 4, 8, 4)


def test_users_experiment_file(resolved: Resolved, empty_folder: Path) -> None:
    (empty_folder / "mine.yaml").write_text(
        "defaults:\n  - override /peft: lora\nseq_length: 128\noptimizer: {lr: 1e-4}\n"
    )
    cfg = resolved("experiment=mine.yaml")
    assert (cfg.seq_length, cfg.optimizer.lr, cfg.peft) == (128, 1e-4, LoraConfig())


def test_new_sources(resolved: Resolved, empty_folder: Path) -> None:
    for name in ("code", "maths"):
        (empty_folder / f"{name}.jsonl").write_text("")
    cfg = resolved(
        "data=blend", "+data.sources.code.path=code.jsonl", "+data.sources.maths={path: maths.jsonl, weight: 0.3}"
    )
    assert {name: (source.path, source.weight) for name, source in cfg.data.sources.items()} == {
        "code": ("code.jsonl", None),
        "maths": ("maths.jsonl", 0.3),
    }


def test_passthrough_template_is_null(resolved: Resolved) -> None:
    assert resolved("tokenizer.chat_template=null").tokenizer.chat_template is None
    assert resolved().tokenizer.chat_template == "default"
