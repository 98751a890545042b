"""Rows of Parquet files: `parquet_rows`.

Invariant: a value that Python cannot represent (a timestamp in nanoseconds, the year 20000) rejects a row only if its
column is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sft_hydra.data_prep.contents import ChangedError, open_known
from sft_hydra.data_prep.files import InputFile, check_rows
from sft_hydra.data_prep.nulls import prune_row
from sft_hydra.errors import DataError

BATCH = 512  # rows


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Placeholder for a value that cannot be read, with the reason; neither text nor list, so any use of it rejects the row."""

    problem: str


def parquet_file(file: InputFile) -> Any:
    """A `pyarrow.parquet.ParquetFile`, verified against the file's checksums if they are known. DataError if it is not Parquet."""
    import pyarrow
    from pyarrow import parquet

    with _told_as_parquet(file.path):
        if file.contents is None:
            return parquet.ParquetFile(file.path)
        return parquet.ParquetFile(pyarrow.PythonFile(open_known(file.path, file.contents), "r"))


@contextmanager
def _told_as_parquet(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as problem:
        raise DataError(f"{path}: cannot be read as Parquet ({problem})") from None


def parquet_rows(file: InputFile, first: int, stop: int | None) -> Iterator[tuple[int, Any]]:
    """(number, row) of rows first..stop. Raises DataError if no column of a row group can be read, ChangedError if the
    file has fewer rows than planned."""
    table = parquet_file(file)
    check_rows(file, table.metadata.num_rows, stop)
    number = 0
    for group in range(table.metadata.num_row_groups):
        size = table.metadata.row_group(group).num_rows
        if number + size > first and (stop is None or number < stop):
            for offset, row in enumerate(_group_rows(file.path, table, group, first - number), number):
                if offset >= first and (stop is None or offset < stop):
                    yield offset, prune_row(row)
        number += size


def _group_rows(path: str, table: Any, group: int, skip: int) -> Iterator[Any]:
    """All rows of a row group; those before `skip` as None."""
    import pyarrow

    done = 0
    try:
        for batch in table.iter_batches(batch_size=BATCH, row_groups=[group]):
            rows = [None] * batch.num_rows if done + batch.num_rows <= skip else _batch_rows(batch)
            yield from rows
            done += batch.num_rows
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as problem:
        rows = _by_columns(path, table, group, problem)
        yield from rows[done:]


def _batch_rows(batch: Any) -> list[Any]:
    try:
        return list(batch.to_pylist())
    except Exception:  # the exception for an unrepresentable value depends on its type
        columns = {name: _values(batch.column(index)) for index, name in enumerate(batch.schema.names)}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except Exception:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as problem:
        return Unreadable(str(problem))


def _by_columns(path: str, table: Any, group: int, problem: Exception) -> list[Any]:
    """The rows of a row group read column by column, after reading it as a whole raised `problem`."""
    size = table.metadata.row_group(group).num_rows
    columns: dict[str, list[Any]] = {}
    readable = 0
    for name in table.schema_arrow.names:
        try:
            columns[name] = _values(table.read_row_group(group, columns=[name]).column(name))
            readable += 1
        except ChangedError:
            raise
        except Exception as why:
            columns[name] = [Unreadable(str(why))] * size
    if not readable:
        raise DataError(f"{path}: cannot be read as Parquet ({problem})")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
