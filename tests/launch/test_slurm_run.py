"""The command line with cluster=slurm, on a real Slurm: plan, prepare, train, fail, follow, cancel."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.waiting import until

from sft_hydra.launch.job import find_job

SMALL = (
    "eval.every=0", "eval.exact_match.path=null", "eval.samples=[]", "export.auto=false", "seq_length=256",
    "data.sample=200", "data.num_workers=1", "train.num_threads=1", "train.micro_batch_size=1", "device=cpu",
)  # fmt: skip
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """command(module, *arguments) in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)

    return run


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_dry_run_shows_what_is_submitted_and_data_comes_first(slurm: Path, command: Command) -> None:
    arguments = [
        "cluster=slurm",
        "cluster.gpus_per_node=1",
        "data.num_parts=2",
        "train.train_iters=3",
        "name=a",
        *SMALL,
    ]
    plan = command("sft_hydra", *arguments, "dry_run=true")
    assert plan.returncode == 0, plan.stderr
    assert not Path("outputs").exists()

    submitted = command("sft_hydra", *arguments)
    assert submitted.returncode == 0, submitted.stderr
    scripts = list(Path("outputs").rglob("[0-9]*_submission.sh"))
    assert len(scripts) == 3  # the parts, the end of the preparation, the training
    assert all(script.read_text() in plan.stdout for script in scripts)

    waited = command("sft_hydra.jobs", "wait", "outputs/a")
    assert (waited.returncode, "COMPLETED" in waited.stdout) == (0, True)
    assert list(losses(Path("outputs/a"))) == [1, 2, 3]
    assert "already prepared" in command("sft_hydra.jobs", "logs", "outputs/a").stdout
    assert command("sft_hydra.jobs", "list").stdout.count("COMPLETED") == 4


def test_attached_run_that_cannot_have_its_data_tells_why(slurm: Path, command: Command) -> None:
    Path("chats.jsonl").write_text('{"messages": [\n')
    done = command(
        "sft_hydra", "cluster=slurm", "cluster.attach=true", "cluster.gpus_per_node=1", "name=b", "data=jsonl",
        "data.path=chats.jsonl", "tokenizer.path=demo", *SMALL,
    )  # fmt: skip
    assert done.returncode == 1
    assert "CANCELLED (DependencyNeverSatisfied)" in done.stdout
    assert "all 1 rows were rejected" in done.stdout
    assert "all 1 rows were rejected" in Path("outputs/b/log.txt").read_text()


def test_a_wrong_job_of_a_sweep_submits_nothing(slurm: Path, command: Command) -> None:
    done = command("sft_hydra", "-m", "cluster=slurm", "cluster.gpus_per_node=1,2", "parallel.tp=2", *SMALL)
    assert done.returncode == 2
    assert "does not divide the world of 1" in done.stderr
    assert not Path("outputs").exists()


def test_mistakes_of_the_jobs_command(command: Command) -> None:
    done = command("sft_hydra.jobs", "logs", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere: no such folder" in done.stderr


def test_ours_answers_beside_another_plugin_of_the_same_name(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "site" / "hydra_plugins" / "zzz_other_launcher"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    (other / "launcher.py").write_text(
        "from hydra.core.config_store import ConfigStore\n"
        "ConfigStore.instance().store('submitit_slurm', {'_target_': 'other.Launcher'}, 'hydra/launcher')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = command("sft_hydra", "hydra/launcher=submitit_slurm", "cluster.gpus_per_node=1", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=1" in done.stdout


def test_the_profile_of_the_docs(command: Command, repo: Path) -> None:
    text = (repo / "docs" / "clusters.md").read_text()
    profile = text.split("```yaml\n")[1].split("```")[0]
    Path("site/cluster").mkdir(parents=True)
    Path("site/cluster/alps.yaml").write_text(profile)
    done = command("sft_hydra", "--config-dir", "site", "cluster=alps", "cluster.gpus_per_node=1", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --account=physics" in done.stdout
    assert "--container-image=/images/pytorch.sqsh" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_preempted_training_ends_as_if_nothing_had_been(slurm: Path, command: Command) -> None:
    """Two nodes of two ranks each against four ranks that were never disturbed. AdamW: Muon works in bf16, which makes
    rounding visible."""
    arguments = [
        "train.train_iters=60",
        "train.global_batch_size=4",
        "checkpoint.interval=null",
        "optimizer=adamw",
        *SMALL,
    ]
    straight = command("sft_hydra", "name=straight", "cluster.gpus_per_node=4", *arguments)
    assert straight.returncode == 0, straight.stderr
    ranks = ["cluster.nodes=2", "cluster.gpus_per_node=2"]
    command("sft_hydra", "name=torn", "cluster=slurm", *ranks, "cluster.partition=low", *arguments)
    torn = Path("outputs/torn")
    until(lambda: (torn / "metrics.jsonl").exists() and len(losses(torn)) > 10)
    subprocess.run(["srun", "--partition=high", "--nodes=4", "--exclusive", "true"], check=True)
    assert command("sft_hydra.jobs", "wait", "outputs/torn").returncode == 0
    handle = find_job(torn.resolve())
    assert handle is not None
    assert "is requeued" in handle.log.read_text()
    assert losses(torn) == pytest.approx(losses(Path("outputs/straight")), abs=1e-4)
