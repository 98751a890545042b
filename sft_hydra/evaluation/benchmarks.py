"""Benchmark items in their hub schema, from a folder of local files or from the hub.

Invariant: a requested benchmark is read, or an error names it; it is never replaced by another one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sft_hydra.config.benchmark_files import local_items
from sft_hydra.data_prep.benchmark_adapters import LETTERS
from sft_hydra.data_prep.sources import MalformedRow, Source, files_of, read_rows
from sft_hydra.errors import DataError
from sft_hydra.schema.data import SourceConfig

WITHOUT_HUB = "to read its items from local files, set eval.data_dir=<folder with <task>_<split>.jsonl>"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Hub id and subset of a benchmark, the fields that its rows must have, and a function that normalizes variants."""

    hub: str
    subset: str | None
    fields: tuple[str, ...]
    completed: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row


def _mmlu(row: dict[str, Any]) -> dict[str, Any]:
    """The answer as an index, if it is a letter."""
    answer = row.get("answer")
    return {**row, "answer": LETTERS.index(answer)} if isinstance(answer, str) and answer in [*LETTERS] else row


def _gsm8k(row: dict[str, Any]) -> dict[str, Any]:
    """The solution text with the number as `answer`, as on the hub; some files name it `solution`."""
    return {**row, "answer": row["solution"]} if isinstance(row.get("solution"), str) else row


ARC = "allenai/ai2_arc"
BENCHMARKS = {
    "mmlu": Benchmark("cais/mmlu", "all", ("question", "choices", "answer", "subject"), _mmlu),
    "arc_easy": Benchmark(ARC, "ARC-Easy", ("question", "choices", "answerKey")),
    "arc_challenge": Benchmark(ARC, "ARC-Challenge", ("question", "choices", "answerKey")),
    "gsm8k": Benchmark("openai/gsm8k", "main", ("question", "answer"), _gsm8k),
    "humaneval": Benchmark("openai/openai_humaneval", None, ("prompt", "test", "entry_point")),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Items of a benchmark split."""

    rows: list[dict[str, Any]]
    origin: str
    """File name or hub id of the items."""


@lru_cache(maxsize=32)
def read_benchmark(name: str, split: str, data_dir: str | None) -> Rows:
    """Rows of one split of a benchmark, or of any other task's `<name>_<split>.jsonl` in `data_dir`.

    A missing local `test` file is replaced by `validation` or a file without a split; `origin` names the file. DataError if
    there is none, or if a row lacks a field.
    """
    known = BENCHMARKS.get(name)
    if data_dir is not None:
        local = local_items(name, split, data_dir)
        config, origin = SourceConfig(path=str(local)), local.name
    else:
        assert known is not None
        config, origin = SourceConfig(path=known.hub, subset=known.subset, split=split), known.hub
    source = Source(name, config)
    rows = []
    try:
        for file in files_of(source):
            for number, row in read_rows(file, source, 0, None):
                rows.append(_checked(row, known, f"{file.path}:{number + 1}"))
    except DataError as error:
        if data_dir is not None:
            raise
        raise DataError(*error.problems, f"{name}: {WITHOUT_HUB}") from None
    if not rows:
        raise DataError(f"{origin}: contains no rows")
    return Rows(rows, origin)


def _checked(row: Any, known: Benchmark | None, origin: str) -> dict[str, Any]:
    if isinstance(row, MalformedRow) or not isinstance(row, dict):
        raise DataError(f"{origin}: the row is not a JSON object")
    if known is None:
        return row
    row = known.completed(row)
    missing = [field for field in known.fields if field not in row]
    if missing:
        raise DataError(
            f"{origin}: missing field(s) {', '.join(missing)}; a row of {known.hub} needs {', '.join(known.fields)}"
        )
    return row
