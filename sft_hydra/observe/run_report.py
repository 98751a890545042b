"""report.html and curves.png of a run, generated from the files in its folder, so they can be regenerated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_hydra.files import exists, read_object, read_text
from sft_hydra.observe import html_pages
from sft_hydra.observe.benchmark_tables import chatcore_table, harness_examples, harness_rows
from sft_hydra.observe.charts import Points, Series, line_chart, smooth
from sft_hydra.observe.curves_png import write_curves
from sft_hydra.observe.metrics import read_metrics
from sft_hydra.observe.misses import miss_rows
from sft_hydra.paths import RunPaths

CURVES = (("Learning rate", "lr"), ("Gradient norm", "grad_norm"), ("Tokens per second", "tokens_per_second"))
LAST = 20  # steps over which a noisy final value is averaged


@dataclass(slots=True)
class RunRecord:
    """Contents of a run's folder; missing parts are empty."""

    paths: RunPaths
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    samples: dict[str, Any]
    summary: dict[str, Any]
    config: str

    @classmethod
    def read(cls, paths: RunPaths) -> "RunRecord":
        config = read_text(paths.resolved) if exists(paths.resolved) else ""
        evaluation, samples, summary = (_load(file) for file in (paths.evaluation, paths.samples, paths.summary))
        return cls(paths, read_metrics(paths.metrics), evaluation, samples, summary, config)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl for training steps."""
        return [line for line in self.metrics if "loss" in line]

    def points(self, key: str) -> Points:
        """(step, value) of a metric of metrics.jsonl."""
        return [(line["step"], line[key]) for line in self.metrics if line.get(key) is not None]

    def keys(self, prefix: str) -> list[str]:
        """Metric names that start with `prefix`, sorted."""
        return sorted({key for line in self.metrics for key in line if key.startswith(prefix)})

    def last(self, key: str, over: int = 1) -> float | None:
        """Mean of the last `over` values of a metric; None if there are none."""
        values = [value for _, value in self.points(key)[-over:]]
        return sum(values) / len(values) if values else None


def write_report(paths: RunPaths) -> Path:
    """Writes `report.html` and `curves.png` beside the run's other files; returns the page's path."""
    run = RunRecord.read(paths)
    charts = _charts(run)
    tasks, moments = _tasks(run.evaluation)
    seconds = {name: value for name, value in run.summary.get("seconds", {}).items() if name != "total"}
    sources = run.summary.get("data", {}).get("sources", [])
    text = html_pages.render(
        "report.html.jinja",
        title=paths.root.name,
        summary=run.summary,
        tiles=_tiles(run),
        charts=charts,
        tasks=tasks,
        moments=moments,
        misses=miss_rows(run.evaluation.get("after", {}).get("misses", [])),
        chatcore_table=chatcore_table(run.evaluation),
        harness_rows=harness_rows(run.evaluation),
        harness_examples=harness_examples(run.evaluation),
        samples=run.samples,
        before={sample["prompt"]: sample["text"] for sample in run.samples.get("before", [])},
        sources=sources,
        total_tokens=sum(source["tokens"] for source in sources) or 1,
        seconds=sorted(seconds.items(), key=lambda item: -item[1]),
        total_seconds=run.summary.get("seconds", {}).get("total") or sum(seconds.values()) or 1,
        config=run.config,
    )
    html_pages.write(paths.report, text)
    write_curves(paths.curves, [(chart["title"], chart["names"], chart["svg"]) for chart in charts])
    return paths.report


def _load(path: Path) -> dict[str, Any]:
    return read_object(path, fix="remove it: the page then has no content from it") if exists(path) else {}


def _charts(run: RunRecord) -> list[dict[str, Any]]:
    """[{title, names, svg}]; `names` are those of the legend."""
    loss = run.points("loss")
    groups = [
        ("Loss", [Series("training", smooth(loss)), Series("validation", run.points("val/loss"))], loss),
        ("Loss by source", _by_source(run, "loss/", smoothed=True), []),
        ("Validation loss by source", _by_source(run, "val/loss/", smoothed=False), []),
        ("ChatCORE and accuracy of its tasks", _chatcore(run), []),
        *((title, [Series(key, run.points(key))], []) for title, key in CURVES),
    ]
    charts = []
    for title, series, noise in groups:
        lines = [s for s in series if len(s.points) > 1]
        behind = [Series("each step", noise, colour=0, faint=True)] if noise else []
        if title.endswith("by source") and len(lines) < 2:
            continue
        if svg := line_chart([*lines, *behind], title):
            charts.append({"title": title, "names": [s.name for s in lines], "svg": svg})
    return charts


def _by_source(run: RunRecord, prefix: str, *, smoothed: bool) -> list[Series]:
    curves = [(key.removeprefix(prefix), run.points(key)) for key in run.keys(prefix)]
    return [Series(name, smooth(points) if smoothed else points) for name, points in curves]


def _chatcore(run: RunRecord) -> list[Series]:
    keys = [key for key in run.keys("eval/chatcore") if key != "eval/chatcore_categorical"]
    return [Series(key.removeprefix("eval/chatcore/").removeprefix("eval/"), run.points(key)) for key in keys]


def _tasks(evaluation: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """(scores of each task, the average last, at each evaluated moment; these moments)."""
    moments = [moment for moment in ("before", "after", "evaluate") if "tasks" in evaluation.get(moment, {})]
    names = list(dict.fromkeys(task for moment in moments for task in evaluation[moment]["tasks"]))
    tasks = [{"name": name, "scores": [evaluation[moment]["tasks"].get(name) for moment in moments]} for name in names]
    if moments:
        tasks.append({"name": "average", "scores": [evaluation[moment]["average"] for moment in moments]})
    return tasks, moments


def _tiles(run: RunRecord) -> list[tuple[str, str]]:
    tiles = []
    if run.steps:
        tiles += [("loss", f"{run.steps[0]['loss']:.3f} → {run.last('loss', LAST):.3f}")]
    if values := run.points("val/loss"):
        tiles.append(("validation loss", f"{values[0][1]:.3f} → {values[-1][1]:.3f}"))
    before, after = (run.evaluation.get(moment, {}).get("average") for moment in ("before", "after"))
    if before is not None and after is not None:
        tiles.append(("exact match", f"{before:.2f} → {after:.2f}"))
    if values := run.points("eval/chatcore"):
        tiles.append(("ChatCORE", f"{values[0][1]:.3f} → {values[-1][1]:.3f}"))
    if run.steps:
        tokens = sum(line["tokens"] for line in run.steps)
        tiles.append((f"tokens in {run.steps[-1]['step']:,} steps", f"{tokens:,}"))
        tiles.append(("tokens per second", f"{run.last('tokens_per_second', LAST):,.0f}"))
    if total := run.summary.get("seconds", {}).get("total"):
        tiles.append(("time", f"{total:,.0f} s"))
    return tiles
