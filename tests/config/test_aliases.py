"""What other frameworks call our keys: every line of the table can be written, and a command of theirs is answered with it."""

import re
from collections.abc import Callable, Iterator

import pytest

from sft_hydra.config.aliases import peer_answer, peer_tables
from sft_hydra.config.schema_introspection import all_keys
from sft_hydra.paths import conf_dir


def lines() -> Iterator[tuple[str, str]]:
    for peer, table in peer_tables().items():
        for name, entry in table.items():
            for text in entry.values() if isinstance(entry, dict) else [entry]:
                yield f"{peer}: {name}", text


def test_every_key_and_option_of_the_table_exists() -> None:
    known = {*all_keys(), "data.sources.mmlu.epochs", "data.sources.gsm8k.epochs"}
    wrong = []
    for name, text in lines():
        for word in [] if text.startswith("- ") else text.split(" "):
            key, _, value = word.partition("=")
            group = conf_dir() / key
            if group.is_dir() and re.fullmatch(r"\w+", value):
                wrong += [] if (group / f"{value}.yaml").is_file() else [f"{name}: {word}"]
            elif not group.is_dir() and key not in known and not key.startswith("+data."):
                wrong.append(f"{name}: {word}")
    assert wrong == []


ANSWERS = {
    (
        "-c",
        "tiny",
    ): "-c: unknown flag; settings are written key=value, here experiment=step_tiny data.packed_dir=packed",
    ("-c", "mine.yaml"): "here experiment=mine.yaml",
    ("--config", "config/default.yaml"): "here experiment=nano3",
    ("-r", "profile"): "-r: unknown flag; settings are written key=value, here cluster=slurm cluster.attach=true",
    ("--dry-run",): "here dry_run=true",
    ("--lr", "1e-5"): "here optimizer.lr=1e-5",
    ("--num-iterations", "-1"): "here train.train_iters=-1",
    ("--adam-beta2=0.98",): "here optimizer.betas=[...,0.98]",
    (
        "--swiglu",
    ): "--swiglu: unknown flag; there is no equivalent: it is set by the architecture in the model's config.json",
    ("--no-such-thing", "3"): "here optimizer.lr=1e-4",
    ("run.wandb.project=x",): "run.wandb.project: unknown key; write logger=wandb logger.wandb.project=x instead",
    ("checkpoint.ckpt_step=500",): "write checkpoint.load=<folder>/step_500 instead",
    ("model.tensor_model_parallel_size=8",): "it is called parallel.tp here: parallel.tp=8",
    ("data.use_preserving_dataset=true",): "there is no equivalent: rows are always read one by one",
    ("policy.dtensor_cfg.lora_cfg.enabled=true",): "write peft=lora instead",
    ("policy.megatron_cfg.enabled=true",): "there is no equivalent: one engine",
    ("ddp.grad_reduce_in_fp32=true",): "always sharded over the data-parallel ranks",
    ("val_set_size=0.05",): "data.split.train=0.95 data.split.valid=0.05 data.split.test=0",
}


def test_a_peers_words_are_answered_with_our_lines(problems: Callable[..., list[str]]) -> None:
    found = problems(*(word for words in ANSWERS for word in words))
    assert len(found) == len(ANSWERS)
    for answer in ANSWERS.values():
        assert any(answer in problem for problem in found), (answer, found)


def test_a_misspelt_key_of_ours_is_no_peers() -> None:
    assert peer_answer("train.lrr") is None
    assert peer_answer("optimizer.betas2") is None


def test_hydras_own_flag_keeps_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    from sft_hydra.cli import command

    assert command(["-c", "job", "seed=9"]) in (0, None)
    assert "seed: 9" in capsys.readouterr().out
