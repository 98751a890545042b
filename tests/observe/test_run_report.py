"""The report says what is in the run's folder, and a comparison where runs differ and which came out best."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft_hydra.config import serialize
from sft_hydra.errors import ConfigError
from sft_hydra.observe.run_report import write_report
from sft_hydra.paths import RunPaths
from sft_hydra.report import find_runs, main, report
from sft_hydra.schema.config import SftConfig

CALL = {"type": "function", "function": {"name": "calc", "arguments": {"a": 2, "op": "+", "b": 3}}}
MISSES = [
    {
        "task": "spell",
        "messages": [{"role": "user", "content": "Spell <i>tea</i>."}, {"role": "assistant", "content": "T E"}],
        "expected": {"role": "assistant", "content": "T E A", "reasoning_content": "three letters"},
    },
    {
        "task": "calculator",
        "messages": [
            {"role": "user", "content": "What is 2 + 3?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "5"},
            {"role": "assistant", "content": "It is 6."},
        ],
        "expected": {"role": "assistant", "content": "It is 5."},
    },
]
PNG = b"\x89PNG\r\n\x1a\n"


def make_run(root: Path, lr: float = 1e-4, last_loss: float = 1.0, exact: float = 0.9) -> RunPaths:
    """A finished run of 100 steps."""
    paths = RunPaths(root)
    root.mkdir(parents=True)
    cfg = SftConfig(name=root.name, run_dir=str(root))
    cfg.optimizer.lr = lr
    cfg.model.name, cfg.data.name = "tiny", "demo"
    serialize.save(cfg, paths.resolved)
    lines: list[dict[str, Any]] = [{"step": 0, "val/loss": 5.0, "val/loss/a": 5.0, "val/loss/b": 5.0}]
    for step in range(1, 101):
        loss = 5.0 - (5.0 - last_loss) * step / 100
        figures = {
            "lr": lr,
            "grad_norm": 1.0 + step % 3,
            "tokens": 1000,
            "trained_tokens": 500,
            "tokens_per_second": 2e4 + step,
        }
        lines.append({"step": step, "loss": loss, **figures, "loss/a": loss, "loss/b": loss + 0.5})
    lines.append({"step": 100, "val/loss": last_loss, "val/loss/a": last_loss, "val/loss/b": last_loss})
    paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {"spell": exact, "calculator": exact}
    moments = {
        "before": {"tasks": dict.fromkeys(tasks, 0.0), "average": 0.0},
        "after": {"tasks": tasks, "average": exact},
    }
    moments["after"]["misses"] = MISSES
    paths.evaluation.write_text(json.dumps(moments))
    samples = {
        "before": [{"prompt": "Spell tea", "text": "xxx"}],
        "after": [{"prompt": "Spell tea", "text": "<b>T E A</b>"}],
    }
    paths.samples.write_text(json.dumps(samples))
    source = {"name": "a", "rows": 1000, "kept": 990, "rejected": 10, "tokens": 5000, "trained_tokens": 2500}
    summary = {
        "started": "2026-01-01 10:00:00",
        "model": "tiny, 1,000 parameters",
        "seconds": {"prepare data": 2.0, "train": 30.0, "total": 33.0},
        "lineage": {"torch": "2.11", "content key": "0123abcd"},
        "kernels": {"attention": "flash-attn 2.8.3"},
        "data": {"sources": [source]},
        "export": {"folder": str(paths.export), "kind": "model", "tensors": 24, "dtype": "float32", "max_diff": 1e-6},
    }
    paths.summary.write_text(json.dumps(summary))
    return paths


def test_what_was_missed_is_a_table(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "mine")).read_text()
    cells = re.findall(r"<td>(.*?)</td>", page[page.index("What was missed") : page.index("</details>")], re.DOTALL)
    assert cells == [
        *("spell", "user: Spell &lt;i&gt;tea&lt;/i&gt;.", "thinks: three letters\nT E A", "T E"),
        *("calculator", "user: What is 2 + 3?\nassistant: calls: calc {&#34;a&#34;: 2, &#34;op&#34;: &#34;+&#34;, &#34;b&#34;: 3}\nresult: 5"),
        *("It is 5.", "It is 6."),
    ]  # fmt: skip


def test_the_report_tells_the_whole_run(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "mine")
    page = write_report(paths).read_text()
    for said in (
        *("5.000 → 1.000", "0.00 → 0.90", "100,000", "Loss by source", "Validation loss by source", "Learning rate"),
        *("Gradient norm", "Tokens per second", "calculator", "90.0%", "What was missed", "990", "50.0%", "30.0 s"),
        *("0123abcd", "1.0e-06", "lr: 0.0001"),
    ):
        assert said in page, said
    assert "&lt;b&gt;T E A&lt;/b&gt;" in page
    assert "<b>T E A</b>" not in page
    assert paths.curves.read_bytes().startswith(PNG)
    assert len(paths.curves.read_bytes()) > 20_000


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "mine")
    for path in (paths.evaluation, paths.samples, paths.summary):
        path.unlink()
    paths.metrics.write_text(paths.metrics.read_text().splitlines()[1] + "\n")
    page = write_report(paths).read_text()
    assert "Exact match" not in page
    assert "Curves" not in page
    assert not paths.curves.exists()


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "mine")
    paths.metrics.write_text(
        paths.metrics.read_text() + '{"step": 101, "loss": NaN, "tokens": 1, "tokens_per_second": 1}\n'
    )
    assert "nan" not in write_report(paths).read_text().partition("<svg")[2].partition("</svg>")[0]


def test_runs_are_compared_by_settings_and_outcomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "sweep" / "lr=1e-4", lr=1e-4, last_loss=2.0, exact=0.5)
    make_run(tmp_path / "sweep" / "lr=3e-4", lr=3e-4, last_loss=1.0, exact=0.7)
    page = report(find_runs([tmp_path / "sweep"]))
    assert page == tmp_path / "sweep" / "compare.html"
    text = page.read_text()
    assert [value in text for value in ('class="good">70.0%', 'class="good">50.0%')] == [True, False]
    assert "optimizer.lr" in text
    assert "run_dir" not in text
    assert text.count('<path class="line') == 10
    shown = capsys.readouterr().out
    assert "optimizer.lr" in shown
    assert "0.0003" in shown
    assert "70.0%" in shown


def test_one_run_gets_its_own_report_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_run(tmp_path / "mine")
    main([str(tmp_path / "mine")])
    assert paths.report.is_file()
    assert capsys.readouterr().out.strip() == str(paths.report)


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_runs([tmp_path, tmp_path / "absent"])
    assert [problem.partition(": ")[2] for problem in refusal.value.problems] == [
        "contains no run (a run's folder has metrics.jsonl)",
        "no such folder",
    ]
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == 2
    assert "contains no run" in capsys.readouterr().err


def test_comparing_loads_no_torch() -> None:
    code = "import sys, sft_hydra.report; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pointing_at_a_chart_shows_exact_values(tmp_path: Path, open_page: Any, scheme: str) -> None:
    page = open_page(write_report(make_run(tmp_path / "mine")), scheme)
    charts = page.locator(".figure")
    box = charts.nth(3).bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.978, box["y"] + 60)
    page.wait_for_selector(".readout:visible")
    assert page.locator(".readout:visible").inner_text().split("\n") == ["step 100", "lr 0.0001"]


def test_several_runs_in_the_browser(tmp_path: Path, open_page: Any) -> None:
    for name, loss in (("a", 2.0), ("b", 1.0)):
        make_run(tmp_path / name, last_loss=loss)
    page = open_page(report(find_runs([tmp_path])))
    assert page.locator("td.good").first.inner_text() == "1.3800"  # mean of the last 20 steps of run b
    assert page.locator(".chart").count() == 5
