"""What is typed -> what Hydra gets."""

from pathlib import Path

import pytest

from sft_hydra.config.argv import experiment_files, normalize_argv

CASES = [
    ("peft=null", "peft='null'"),
    ("peft='null'", "peft='null'"),
    ("peft=null,lora", "peft='null',lora"),
    ("peft=choice(null,lora)", "peft='null',lora"),
    ("logger=[wandb,tensorboard]", "logger=[wandb,tensorboard]"),
    ("logger=null,wandb,[wandb,tensorboard]", "logger='null',wandb,[wandb,tensorboard]"),
    ("experiment=null", "experiment='null'"),
    ("experiment=nullify", "experiment=nullify"),
    ("train.epochs=null", "train.epochs=null"),
    ("tokenizer.chat_template=null", "tokenizer.chat_template=null"),
    ("peft.target_modules=null", "peft.target_modules=null"),
    ("~data.sources.train", "~data.sources.train"),
    ("name=mine/peft=null,seed=1", "name='mine/peft=null,seed=1'"),
    ("name=a,b", "name=a,b"),
]


@pytest.mark.parametrize(("typed", "expected"), CASES)
def test_one_override(typed: str, expected: str) -> None:
    assert normalize_argv([typed]) == [expected]


def test_flags_go_first_with_their_values() -> None:
    argv = ["model=tiny", "-m", "seed=1,2", "--config-dir", "mine", "-p", "train", "--info", "seed=3"]
    assert normalize_argv(argv) == [
        "-m", "--config-dir", "mine", "-p", "train", "--info=all", "model=tiny", "seed=1,2", "seed=3",
    ]  # fmt: skip


def test_info_keeps_its_value() -> None:
    assert normalize_argv(["-i", "searchpath", "seed=1"]) == ["--info=searchpath", "seed=1"]


def test_new_sources_are_made_first_and_together() -> None:
    argv = [
        "+data.sources.code.path=a.jsonl",
        "seed=1",
        "++data.sources.maths={path: b.jsonl}",
        "+data.sources.code.weight=1,2",
    ]
    assert normalize_argv(argv) == [
        "++data.sources={code: {}, maths: {}}",
        "data.sources.code.path=a.jsonl",
        "seed=1",
        "data.sources.maths={path: b.jsonl}",
        "data.sources.code.weight=1,2",
    ]


def test_slurm_launcher_implies_slurm_cluster() -> None:
    assert normalize_argv(["hydra/launcher=submitit_slurm"]) == ["cluster=slurm", "hydra/launcher=submitit_slurm"]
    assert "cluster=slurm" not in normalize_argv(["hydra/launcher=submitit_slurm", "cluster=local"])
    assert normalize_argv(["hydra/launcher=submitit_local"]) == ["hydra/launcher=submitit_local"]


def test_experiment_file_becomes_an_option_of_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    option = str(tmp_path).lstrip("/")
    assert normalize_argv(["experiment=mine.yaml"]) == [f"experiment='{option}/mine'"]
    assert normalize_argv(["experiment=mine.yaml,/b/yours.yml"]) == [f"experiment='{option}/mine','b/yours'"]
    assert list(experiment_files(["seed=1", "experiment=mine.yaml,/b/yours.yml"])) == [
        Path("mine.yaml"),
        Path("/b/yours.yml"),
    ]
    assert normalize_argv(["experiment=nano3"]) == ["experiment=nano3"]


def test_an_adapters_path_brings_lora_and_its_base():
    assert normalize_argv(["peft.path=a"]) == ["peft=lora", "model=hf", "model.path=null", "peft.path=a"]
    assert normalize_argv(["model=qwen3_8b", "peft.path=a"]) == ["peft=lora", "model=qwen3_8b", "peft.path=a"]
    assert normalize_argv(["peft=lora", "peft.path=a"]) == ["model=hf", "model.path=null", "peft=lora", "peft.path=a"]
    assert normalize_argv(["experiment=mine", "peft.path=a"]) == ["peft=lora", "experiment=mine", "peft.path=a"]
