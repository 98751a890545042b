"""Comparison of several runs from their folders: settings that differ, outcomes, curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hydra.observe import html_pages
from sft_hydra.observe.charts import Series, line_chart, smooth
from sft_hydra.observe.run_report import LAST, RunRecord

CURVES = (
    ("Loss", "loss", True),
    ("Validation loss", "val/loss", False),
    ("Learning rate", "lr", False),
    ("Gradient norm", "grad_norm", True),
    ("Tokens per second", "tokens_per_second", True),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A column of outcomes. `better`: whether `small` or `large` values are better; None if neither."""

    name: str
    form: str
    better: str | None


FIGURES = (
    Figure("loss", "{:.4f}", "small"),
    Figure("validation loss", "{:.4f}", "small"),
    Figure("exact match", "{:.1%}", "large"),
    Figure("ChatCORE", "{:.1%}", "large"),
    Figure("steps", "{:,.0f}", None),
    Figure("tokens", "{:,.0f}", None),
    Figure("tokens/s", "{:,.0f}", "large"),
    Figure("seconds", "{:,.0f}", None),
)


@dataclass(slots=True)
class Comparison:
    """One entry per run. `settings`: values of the `keys` in which the runs differ; `outcomes`: by the names of FIGURES."""

    names: list[str]
    keys: list[str]
    settings: list[list[str]]
    outcomes: list[dict[str, float | None]]

    def best(self, figure: Figure) -> float | None:
        """The best value of a column; None if there are fewer than two different values or neither end is better."""
        values = [value for outcome in self.outcomes if (value := outcome[figure.name]) is not None]
        if figure.better is None or len(set(values)) < 2:
            return None
        return min(values) if figure.better == "small" else max(values)

    def columns(self) -> list[Figure]:
        """Columns with a value for at least one run."""
        return [figure for figure in FIGURES if any(outcome[figure.name] is not None for outcome in self.outcomes)]


def compare(runs: Sequence[RunRecord], names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare runs. `configs`: for each run, dotted key -> value; keys with the same value in all runs are left out."""
    everywhere = dict.fromkeys(key for config in configs for key in config)
    keys = [key for key in everywhere if len({str(config.get(key)) for config in configs}) > 1]
    settings = [[_plain(config.get(key)) for key in keys] for config in configs]
    return Comparison(list(names), keys, settings, [_outcome(run) for run in runs])


def write_comparison(path: Path, comparison: Comparison, runs: Sequence[RunRecord]) -> None:
    """One page with the table and the curves of all runs."""
    charts = []
    for title, key, smoothed in CURVES:
        lines = [
            Series(name, smooth(run.points(key)) if smoothed else run.points(key))
            for name, run in zip(comparison.names, runs, strict=True)
        ]
        if svg := line_chart(lines, title):
            charts.append({"title": title, "names": comparison.names, "svg": svg})
    text = html_pages.render(
        "compare.html.jinja",
        title=f"{len(runs)} runs",
        folders=[str(run.paths.root) for run in runs],
        comparison=comparison,
        columns=[(figure, comparison.best(figure)) for figure in comparison.columns()],
        charts=charts,
    )
    html_pages.write(path, text)


def _outcome(run: RunRecord) -> dict[str, float | None]:
    moments = [run.evaluation.get(moment, {}).get("average") for moment in ("evaluate", "after")]
    return {
        "loss": run.last("loss", LAST),
        "validation loss": run.last("val/loss"),
        "exact match": next((value for value in moments if value is not None), None),
        "ChatCORE": run.last("eval/chatcore"),
        "steps": float(run.steps[-1]["step"]) if run.steps else None,
        "tokens": float(sum(line["tokens"] for line in run.steps)) if run.steps else None,
        "tokens/s": run.last("tokens_per_second", LAST),
        "seconds": run.summary.get("seconds", {}).get("total"),
    }


def _plain(value: Any) -> str:
    value = getattr(value, "name", value)
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, list)
        else str(value)
    )
