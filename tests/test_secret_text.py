"""A secret is not written: a config with one is refused, in words that do not repeat it; experiments hold values only."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft_hydra.errors import UserError
from sft_hydra.schema.config import SftConfig
from sft_hydra.secret_text import is_secret_name

Problems = Callable[..., list[str]]
LONG = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"

CASES = [
    (["+cluster.env.DB_PASS=hunter2"], "hunter2"),
    (["+cluster.env.SSH_PASSPHRASE=abc"], "abc"),
    (["+cluster.env.SIGNING_KEY=k9"], "k9"),
    (["+cluster.env.db_pwd=x1y2"], "x1y2"),
    (["cluster.setup=['export DB_PASS=hunter2']"], "hunter2"),
    (["cluster.sbatch_args=['--export=ALL,SIGNING_KEY=k9k9']"], "k9k9"),
    (["cluster.srun_args=[--x=tr0ub4]"], "tr0ub4"),  # the value of a variable of this shell, six letters
    (["logger=mlflow", "logger.mlflow.tracking_uri='https://me:hunter2@host/'"], "hunter2"),
    (["data.filters.judge.url='https://host/v1?api_key=k9k9k9'"], "k9k9k9"),
    (["generate.system='Use correcthorse here'"], "correcthorse"),  # the value of a variable of this shell, anywhere
    ([f"optimizer.lr={LONG}"], LONG),
    ([f"seed={LONG}", "model=nothing"], LONG),
    (["cluster.env={DB_PASS: hunter2"], "hunter2"),
    (["cluster.env.DB_PASS=hunter2,hunter3"], "hunter2"),
]


@pytest.mark.parametrize(("argv", "secret"), CASES)
def test_a_secret_is_refused_and_not_repeated(
    argv: list[str], secret: str, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOOL_PASS", "tr0ub4")
    monkeypatch.setenv("OTHER_KEY", "correcthorse")
    found = problems(*argv)
    assert found
    assert not any(secret in problem for problem in found)


def test_ordinary_values_are_accepted(resolved: Callable[..., SftConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_KEY", "default")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    cfg = resolved("cluster.setup=['export A_KEY=$A_KEY','export PATH=/x:$PATH']", "+cluster.env.TOKENIZERS_PARALLELISM=false",
             "+cluster.env.MAX_TOKENS=512", "+cluster.env.COMPASS=1", "data.default.messages_key=turns", "dry_run=true")  # fmt: skip
    assert cfg.cluster.env == {"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": "512", "COMPASS": "1"}


@pytest.mark.parametrize(
    ("name", "secret"),
    [("WANDB_API_KEY", True), ("A_PASS_B", True), ("GPG_KEY", True), ("PGPASSWORD", True), ("X_TOKEN", True), ("DB_PWD", True),
     ("PWD", False), ("OLDPWD", False), ("MONKEY", False), ("KEYBOARD", False), ("BYPASS", False), ("TOKENIZER", False)],
)  # fmt: skip
def test_names(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_a_message_about_numbers_is_whole() -> None:
    assert str(UserError("eval.tokens=0 must be at least 1")) == "eval.tokens=0 must be at least 1"


@pytest.mark.parametrize(
    "text",
    ["name: ${oc.env:HOME}", "name: 'a${ oc.env :HOME}'", "generate: {prompts: ['${oc.env:USER,me}']}", "name: ${oc.decode:'${oc.env:X}'}",
     "hydra: {sweeper: {params: {name: '${oc.env:HOME},b'}}}", "cluster: {env: {'${oc.env:HOME}': a}}"],
)  # fmt: skip
def test_an_experiment_looks_nothing_up(text: str, problems: Problems, empty_folder: Path) -> None:
    (empty_folder / "mine" / "experiment").mkdir(parents=True)
    (empty_folder / "mine" / "experiment" / "bad.yaml").write_text(f"# @package _global_\n{text}\n")
    for argv in (["experiment=mine/experiment/bad.yaml"], ["--config-dir", "mine", "experiment=bad"]):
        assert any("an experiment holds only values" in problem for problem in problems(*argv)), argv


def test_keys_of_the_same_config_may_be_named(resolved: Callable[..., object], empty_folder: Path) -> None:
    (empty_folder / "mine.yaml").write_text("name: len${seq_length}\ngenerate: {system: 'say \\${oc.env:HOME}'}\n")
    cfg = resolved("experiment=mine.yaml", "dry_run=true")
    assert cfg.name == "len256"  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["hydra.output_subdir", "hydra.run.dir", "++hydra.sweep.dir", "+hydra.callbacks.x"])
def test_hydra_writes_nothing(key: str, problems: Problems, empty_folder: Path) -> None:
    assert any("because Hydra only composes the config here" in problem for problem in problems(f"{key}=x"))
    (empty_folder / "mine" / "model").mkdir(parents=True)
    (empty_folder / "mine" / "model" / "own.yaml").write_text("# @package _global_\nhydra: {output_subdir: x}\n")
    assert "because Hydra only composes the config here" in problems("--config-dir", "mine", "model=own")[0]


def test_a_users_file_that_would_not_be_read(problems: Problems, empty_folder: Path) -> None:
    (empty_folder / "mine" / "cluster").mkdir(parents=True)
    (empty_folder / "mine" / "cluster" / "slurm.yaml").write_text("kind: slurm\n")
    for argv in (["--config-dir", "mine"], ["hydra.searchpath=[file://mine]"]):
        found = problems(*argv, "cluster=slurm")
        assert found[0].startswith(
            "mine/cluster/slurm.yaml: would never be read, because sft_hydra has a file cluster/slurm.yaml"
        )
