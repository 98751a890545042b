"""report.html: the whole run on one page, made from the files in its folder alone (so it can be made again at any time)."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from sft_hydra.observe.charts import Series, line_chart
from sft_hydra.observe.metrics import read_metrics
from sft_hydra.paths import RunPaths

TEMPLATE = Path(__file__).with_name("report.html.jinja")
CURVES = (
    ("Learning rate", "lr"),
    ("Gradient norm", "grad_norm"),
    ("Tokens per second", "tokens_per_second"),
)


def write_report(paths: RunPaths) -> Path:
    """Writes `report.html` beside the run's other files and returns its path."""
    metrics = read_metrics(paths.metrics)
    page = _environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        title=paths.root.name,
        summary=_load(paths.summary),
        evaluation=_load(paths.evaluation),
        samples=_load(paths.samples),
        config=paths.resolved.read_text(encoding="utf-8"),
        charts=_charts(metrics),
        tiles=_tiles(metrics, _load(paths.evaluation), _load(paths.summary)),
    )
    temporary = paths.report.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(paths.report)
    return paths.report


def _environment() -> Environment:
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    env.filters["thousands"] = lambda value: f"{value:,.0f}"
    env.filters["seconds"] = lambda value: f"{value:,.1f} s"
    return env


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _series(metrics: list[dict[str, Any]], key: str, name: str) -> Series:
    return Series(name, [(line["step"], line[key]) for line in metrics if line.get(key) is not None])


def _charts(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = sorted({key for line in metrics for key in line})
    loss = [_series(metrics, "loss", "training")]
    if "val/loss" in keys:
        loss.append(_series(metrics, "val/loss", "validation"))
    groups = [
        ("Loss", loss),
        (
            "Loss by source",
            [_series(metrics, key, key.removeprefix("loss/")) for key in keys if key.startswith("loss/")],
        ),
        *((title, [_series(metrics, key, key)]) for title, key in CURVES),
    ]
    charts = [
        {"title": title, "svg": line_chart(series, title), "names": [s.name for s in series]}
        for title, series in groups
    ]
    return [chart for chart in charts if chart["svg"]]


def _tiles(metrics: list[dict[str, Any]], evaluation: dict[str, Any], summary: dict[str, Any]) -> list[tuple[str, str]]:
    steps = [line for line in metrics if "loss" in line]
    tiles = []
    if steps:
        tiles += [("loss", f"{steps[0]['loss']:.3f} → {steps[-1]['loss']:.3f}"), ("steps", f"{steps[-1]['step']:,}")]
        tiles.append(("tokens", f"{sum(line['tokens'] for line in steps):,}"))
    values = [line["val/loss"] for line in metrics if "val/loss" in line]
    if values:
        tiles.append(("validation loss", f"{values[0]:.3f} → {values[-1]:.3f}"))
    before, after = evaluation.get("before"), evaluation.get("after")
    if before and after:
        tiles.append(("exact match", f"{before['average']:.2f} → {after['average']:.2f}"))
    if "total" in summary.get("seconds", {}):
        tiles.append(("time", f"{summary['seconds']['total']:.0f} s"))
    return tiles
