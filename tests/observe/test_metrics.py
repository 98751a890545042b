"""metrics.jsonl holds every step once, whatever happened in between."""

from pathlib import Path

from sft_hydra.observe.metrics import MetricsFile, read_metrics


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(1, 6):
        first.write({"step": step, "loss": 10.0 - step})
    second = MetricsFile(path, resume_step=3)
    for step in range(4, 7):
        second.write({"step": step, "loss": 1.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    assert read_metrics(path)[2]["loss"] == 7.0
    assert read_metrics(path)[3]["loss"] == 1.0


def test_a_fresh_run_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).write({"step": 1})
    MetricsFile(path)
    assert read_metrics(path) == []


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
