"""metrics.jsonl: one JSON object per optimizer step (and per evaluation), appended during the run.

A resumed run first removes the lines after its checkpoint, so every step occurs once.
"""

import json
from pathlib import Path
from typing import Any


class MetricsFile:
    """Writer of metrics.jsonl. `path=None`: writes nothing (ranks other than 0)."""

    def __init__(self, path: Path | None, resume_step: int = 0) -> None:
        self.path = path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; it is handed to the operating system when this returns."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line truncated by a crash is skipped."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
