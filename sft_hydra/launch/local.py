"""Runs the jobs of a sweep on this machine, one after the other, each in a separate process, and prints a table."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sft_hydra.errors import UserError
from sft_hydra.launch.dry_run import describe
from sft_hydra.launch.local_ranks import run_here
from sft_hydra.launch.sweep_jobs import Job
from sft_hydra.observe import metrics

METRIC_PREFIX = "eval/"


@dataclass(frozen=True, slots=True)
class JobResult:
    """Outcome of one job of a sweep."""

    job: Job
    exit_code: int
    loss: float | None
    best: tuple[str, float] | None
    """Best value of a job's first evaluation metric."""


def plan_jobs(jobs: Sequence[Job]) -> None:
    """Print the plans of a sweep (`dry_run=true`)."""
    for number, job in enumerate(jobs, start=1):
        print(f"== job {number} of {len(jobs)}: {job.label}\n{describe(job.cfg)}\n")


def run_jobs(jobs: Sequence[Job]) -> list[JobResult]:
    """Run all jobs. A failed job does not stop the others; its exit code is in the result."""
    console = Console()
    results = []
    for number, job in enumerate(jobs, start=1):
        console.rule(f"job {number} of {len(jobs)}: {job.label}")
        results.append(JobResult(job, _run(job), *read_metrics(job.paths.metrics)))
    console.print(results_table(results))
    return results


def _run(job: Job) -> int:
    """The exit code of a job, after printing the error of a refused one."""
    try:
        return run_here(job.cfg)
    except UserError as error:
        print(error.describe(), file=sys.stderr)
        return 2


def read_metrics(path: Path) -> tuple[float | None, tuple[str, float] | None]:
    """(loss of the last step, best value of the first evaluation metric) of a metrics.jsonl; None where there is none."""
    rows = metrics.read_metrics(path)
    losses = [row["loss"] for row in rows if "loss" in row]
    metric = next((key for row in rows for key in row if key.startswith(METRIC_PREFIX)), None)
    values = [row[metric] for row in rows if metric in row]
    best = (metric, max(values)) if metric is not None and values else None
    return (losses[-1] if losses else None), best


def results_table(results: Sequence[JobResult]) -> Table:
    """The table at the end of a sweep."""
    table = Table(title="sweep")
    for name in ("job", "exit code", "loss", "best metric", "folder"):
        table.add_column(name, overflow="fold")
    for result in results:
        loss = "" if result.loss is None or math.isnan(result.loss) else f"{result.loss:.4f}"
        best = "" if result.best is None else f"{result.best[0]} {result.best[1]:.4f}"
        table.add_row(result.job.label, str(result.exit_code), loss, best, str(result.job.paths.root))
    return table
