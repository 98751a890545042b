"""metrics.jsonl: one JSON object per optimizer step (and per evaluation), appended during the run.

A resumed run first removes the lines after its checkpoint, so every step occurs once.
"""

import json
from pathlib import Path
from typing import Any

from sft_hydra.files import exists, read_text, unreadable

FIX = "repair it, or remove the file: the run then continues without the earlier metrics"


class MetricsFile:
    """Writer of metrics.jsonl. `path=None`: writes nothing (ranks other than 0)."""

    def __init__(self, path: Path | None, resume_step: int = 0) -> None:
        self.path = path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or (path.is_symlink() and not path.exists()):
            read_text(path, fix=FIX)  # raises the error that describes it
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
    """All complete lines; a last line torn by a crash is left out. ConfigError for anything else that is not a step's line."""
    if not exists(path):
        return []
    *whole, torn = read_text(path, fix=FIX).split("\n")
    lines = []
    for number, text in enumerate([*whole, torn], start=1):
        try:
            line = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError) as problem:
            if number > len(whole):
                break
            raise unreadable(path, f"line {number}: {problem}", fix=FIX) from None
        if line is not None and not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            raise unreadable(path, f"line {number} has no step", fix=FIX)
        lines += [line] if line is not None else []
    return lines
