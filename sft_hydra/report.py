"""`python -m sft_hydra.report <run> ...`: the report of one run, or a comparison of several on a page and in a table. <run> is
a run's folder, or a folder of runs (a sweep). Torch-free; reads finished and unfinished runs; exit code 2 for an invalid
command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sft_hydra.config import serialize
from sft_hydra.errors import ConfigError, UserError
from sft_hydra.observe.compare import Comparison, compare, write_comparison
from sft_hydra.observe.console import Console
from sft_hydra.observe.run_report import RunRecord, write_report
from sft_hydra.observe.terminal import outlive_terminal
from sft_hydra.paths import RunPaths

NOT_COMPARED = (
    "name",
    "run_dir",
    "runner",
    "dry_run",
    "output_dir",
)  # differ between any two runs, or do not affect the outcome


def main(argv: Sequence[str] | None = None) -> None:
    outlive_terminal()
    parser = argparse.ArgumentParser(
        prog="python -m sft_hydra.report", description="Write the report of a run, or compare several."
    )
    parser.add_argument("run", type=Path, nargs="+", help="a run's folder, or a folder of runs")
    parser.add_argument("--out", type=Path, help="page of a comparison (default: compare.html beside the runs)")
    arguments = parser.parse_args(argv)
    try:
        page = report(find_runs(arguments.run), arguments.out)
    except UserError as error:
        print(error.describe(), file=sys.stderr)
        sys.exit(2)
    print(page)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders that are, or are in, `folders`, without duplicates. ConfigError for a folder without runs."""
    found: list[Path] = []
    problems = []
    for folder in folders:
        runs = [metrics.parent for metrics in sorted(folder.rglob("metrics.jsonl"))] if folder.is_dir() else []
        found += runs
        if not runs:
            problems.append(
                f"{folder}: contains no run (a run's folder has metrics.jsonl)"
                if folder.is_dir()
                else f"{folder}: no such folder"
            )
    if problems:
        raise ConfigError(*problems)
    return list(dict.fromkeys(found))


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page, and for several runs print a table; returns the page's path."""
    if len(folders) == 1:
        return write_report(RunPaths(folders[0]))
    runs = [RunRecord.read(RunPaths(folder)) for folder in folders]
    parent = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    names = [str(folder.absolute().relative_to(parent)) for folder in folders]
    comparison = compare(runs, names, [_settings(run) for run in runs])
    page = out or parent / "compare.html"
    write_comparison(page, comparison, runs)
    _show(comparison)
    return page


def _settings(run: RunRecord) -> dict[str, object]:
    flat = serialize.flatten(serialize.load(run.paths.resolved))
    return {key: value for key, value in flat.items() if key not in NOT_COMPARED}


def _show(comparison: Comparison) -> None:
    columns = comparison.columns()
    rows = []
    for name, outcome in zip(comparison.names, comparison.outcomes, strict=True):
        values = [(figure.form, outcome[figure.name]) for figure in columns]
        rows.append([name, *("" if value is None else form.format(value) for form, value in values)])
    console = Console()
    console.table(f"{len(rows)} runs", ["run", *(figure.name for figure in columns)], rows)
    if comparison.keys:
        settings = zip(comparison.keys, *comparison.settings, strict=True)
        console.table("settings that differ", ["key", *comparison.names], list(settings))


if __name__ == "__main__":
    main()
