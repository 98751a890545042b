"""The command as a process: exit codes, what it imports, what it writes, what Hydra users expect of it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_hydra import __version__

Command = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "transformers", "datasets", "pandas", "wandb", "scipy")
REPORT = f"""
import sys
from sft_hydra.cli import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
print("heavy:", [name for name in {HEAVY} if name in sys.modules], "few:", len(sys.modules) < 1500, "code:", code)
"""


@pytest.fixture
def sft_hydra(tmp_path: Path) -> Command:
    """sft_hydra(*argv): the command in an empty folder, with no network to reach."""

    def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **(env or {})}
        command = [sys.executable, "-m", "sft_hydra", *argv]
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)

    return run


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["model=qwen4", "optimizer.lrr=1", "seq_length=8k"], 2),
        (["model=nano3", "peft=lora", "seq_length=8192", "dry_run=true"], 0),
        (["-m", "peft=null,lora", "optimizer.lr=1e-4,2e-4", "dry_run=true"], 0),
        (["cluster=slurm", "train.global_batch_size=8", "dry_run=true"], 0),
    ],
    ids=["refusal", "dry run", "sweep", "slurm"],
)
def test_login_side_stays_light_and_writes_nothing(argv: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", REPORT, *argv]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == f"heavy: [] few: True code: {code}"
    assert list(tmp_path.iterdir()) == []


def test_refusal_is_a_list_without_traceback(sft_hydra: Command, tmp_path: Path) -> None:
    done = sft_hydra("+unknown.key=1", "optimizer.lrr=1", "parallel.tp=3")
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, lines[0]) == (2, "", "Invalid config:")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  - unknown.key",
        "  - optimizer.lrr",
        "  - parallel.tp*pp*cp = 3*1*1 = 3 does not divide the world of 1 = cluster.nodes 1 x cluster.gpus_per_node 1; choose sizes whose product divides it, or change the cluster",
    ]
    assert list(tmp_path.iterdir()) == []


def test_sweep_plans_four_jobs(sft_hydra: Command) -> None:
    done = sft_hydra("-m", "peft=null,lora", "optimizer.lr=1e-4,2e-4", "dry_run=true")
    assert (done.returncode, done.stderr) == (0, "")
    titles = [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("==")]
    assert titles == [f"peft={peft},optimizer.lr={lr}" for peft in ("null", "lora") for lr in ("0.0001", "0.0002")]


def test_help_fits_a_screen(sft_hydra: Command) -> None:
    done = sft_hydra("--help")
    assert done.returncode == 0
    assert 20 < len(done.stdout.splitlines()) <= 40
    assert max(map(len, done.stdout.splitlines())) <= 110
    assert "schema" not in done.stdout


def test_version_is_ours(sft_hydra: Command) -> None:
    assert sft_hydra("--version").stdout == f"sft_hydra {__version__}\n"


def test_cfg_job_shows_a_section(sft_hydra: Command) -> None:
    done = sft_hydra("peft=lora", "peft.dim=8", "--cfg", "job", "-p", "peft")
    assert done.stdout.startswith("# @package peft\npath: null\ndim: 8\n")


def test_users_own_options(sft_hydra: Command, tmp_path: Path) -> None:
    """A cluster profile on ours, and a data set of one's own, in a folder given by --config-dir."""
    for name, text in {
        "cluster/mine.yaml": "defaults:\n  - slurm\n  - _self_\npartition: long\ngpus_per_node: 4\n",
        "data/mine.yaml": "name: mine\nsources:\n  chats: {path: chats.jsonl}\n",
    }.items():
        (tmp_path / "options" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "options" / name).write_text(text)
    (tmp_path / "chats.jsonl").write_text("")
    for folder in (["--config-dir", "options"], ["hydra.searchpath=[file://options]"]):
        done = sft_hydra("cluster=mine", "data=mine", "train.global_batch_size=4", "dry_run=true", *folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert "outputs/tiny-mine-full" in done.stdout
        assert "--partition=long" in done.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python -m sft_hydra peft=null model=q", ["model=qwen3_0_6b", "model=qwen3_8b"]),
        ("sft-hydra train.gl", ["train.global_batch_size=", "train.global_batch_tokens="]),
        ("python3 -m sft_hydra -m sche", ["scheduler.", "scheduler="]),
    ],
)
def test_completion(line: str, words: list[str], sft_hydra: Command) -> None:
    done = sft_hydra("-sc", "query=bash", env={"COMP_LINE": line})
    assert done.stdout.split() == words


def test_bash_completes_the_module(sft_hydra: Command, tmp_path: Path) -> None:
    script = sft_hydra("-sc", "install=bash").stdout
    ask = 'COMP_LINE="python -m sft_hydra peft=l"; COMP_WORDS=(python -m sft_hydra peft=l); COMP_CWORD=3; _sft_hydra; echo "${COMPREPLY[@]}"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        text=True,
        capture_output=True,
    )
    assert done.stdout.split() == ["peft=lora"]


def test_worker_refuses_what_is_no_config(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sft_hydra.worker", str(tmp_path / "resolved.yaml")]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Invalid config:\n  - {tmp_path}/resolved.yaml: no such file\n"
