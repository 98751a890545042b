"""Where rows come from: the sources of a config, their files, and the rows of any range of a file, one by one.

Invariant: a row keeps its place (`file:line`); a line that is no JSON is a Bad row, never the end of the run.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from sft_hydra.chat.message import has_long_number, parse_leniently
from sft_hydra.data_prep import spelling
from sft_hydra.data_prep.benchmark_adapters import trees
from sft_hydra.data_prep.contents import ChangedError, Contents, open_known
from sft_hydra.data_prep.conversation import prune_nulls
from sft_hydra.errors import ConfigError, DataError
from sft_hydra.schema.data import DataConfig, SourceConfig

NUMBERS = ("weight", "epochs")  # of an entry of a blend; all else is text
LINES = (".jsonl", ".json", ".ndjson")
PACKED = (".gz", ".zst")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """A named source. `only`: the one split that all its rows go to (`valid` for a separate validation file)."""

    name: str
    config: SourceConfig
    only: str | None = None


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file, hub data set or made part of a source; `kind` is lines, array, parquet, hub, demo or builtin. In a plan,
    `contents` are what its bytes must be when it is read, `fingerprint` is what a hub data set's must be."""

    path: str
    kind: str
    contents: Contents | None = field(default=None, compare=False)
    fingerprint: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class MalformedRow:
    """A line that could not be parsed, and why."""

    problem: str


def sources_of(data: DataConfig) -> list[Source]:
    """The sources that `data.path`, else `data.blend`, else `data.sources` name, with what `data.default` and files of
    prompts say. Raises ConfigError if there are none."""
    return [replace(source, config=_completed(source, data.default)) for source in _named_sources(data)]


def _completed(source: Source, default: SourceConfig) -> SourceConfig:
    usual = SourceConfig()
    said = {name: getattr(source.config, name) for name in SourceConfig.__dataclass_fields__}
    for name, value in said.items():
        if value == getattr(usual, name):
            said[name] = getattr(default, name)
    for name in ("prompt", "system_prompt"):
        if file := said[f"{name}_file"]:
            try:
                said[name] = Path(file).expanduser().read_text(encoding="utf-8")
            except OSError as problem:
                raise ConfigError(
                    f"source {source.name}: {name}_file={file} cannot be read ({problem.strerror})"
                ) from None
    return SourceConfig(**said)


def _named_sources(data: DataConfig) -> list[Source]:
    if data.path:
        found = [Source(Path(data.path).name.split(".")[0] or "data", SourceConfig(path=data.path))]
        if data.valid_path:
            found.append(Source("valid", SourceConfig(path=data.valid_path), only="valid"))
        return found
    found = _read_blend(Path(data.blend).expanduser()) if data.blend else []
    twice = sorted({source.name for source in found} & set(data.sources))
    if twice:
        raise ConfigError(f"data.blend={data.blend} and data.sources both name {', '.join(twice)}")
    found += [Source(name, config) for name, config in data.sources.items()]
    problems = [f"data.sources.{source.name}.path: missing" for source in found if not source.config.path]
    if not found:
        problems = [
            "no data: give data=jsonl data.path=<file>, data=blend data.blend=<file> or data.sources.<name>.path"
        ]
    if problems:
        raise ConfigError(*problems)
    return found


def _read_blend(path: Path) -> list[Source]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["datasets"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f'data.blend={path}: not a JSON file {{"datasets": [...]}} ({problem!r})') from None
    known = set(SourceConfig.__dataclass_fields__)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"data.blend={path}: `datasets` must be a list of objects")
    problems, found = [], []
    for number, entry in enumerate(entries):
        options = {key: value for key, value in entry.items() if key != "name"}
        problems += [
            f"{path}: datasets[{number}].{key}={value!r} must be {'a number' if key in NUMBERS else 'text'}"
            for key, value in entry.items()
            if value is not None
            and (isinstance(value, bool) or not isinstance(value, int | float if key in NUMBERS else str))
        ]
        unknown = sorted(set(options) - known)
        if unknown:
            problems.append(
                f"{path}: datasets[{number}] has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
            continue
        if not entry.get("name") or not entry.get("path"):
            problems.append(f"{path}: datasets[{number}] needs `name` and `path`")
        found.append(Source(str(entry.get("name")), SourceConfig(**options)))
    names = [source.name for source in found]
    problems += [
        f"{path}: the name {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if problems:
        raise ConfigError(*problems)
    return found


def files_of(source: Source) -> list[InputFile]:
    """The files of a source, sorted by path. Raises DataError when there are none."""
    path = str(source.config.path)
    if path.startswith("demo:"):
        return [InputFile(path, "demo")]
    if path.startswith("builtin:"):
        return [InputFile(path, "builtin")]
    local = Path(path).expanduser()
    if local.is_dir() and not (source.config.split or source.config.subset):
        found = sorted(file for file in local.rglob("*") if file.is_file() and _kind(file))
    elif local.is_file():
        found = [local]
    elif any(sign in path for sign in "*?["):
        base = Path(local.anchor) if local.is_absolute() else Path()
        found = sorted(file for file in base.glob(str(local.relative_to(local.anchor))) if file.is_file())
    elif local.is_dir() or HUB_ID.fullmatch(path) or path.startswith("hf://"):
        return [InputFile(path.removeprefix("hf://"), "hub")]
    else:
        found = []
    if not found:
        raise DataError(f"source {source.name}: nothing found at {path} (a file, folder, glob, hub id or demo:<part>)")
    problems = [
        f"source {source.name}: {file} is no .jsonl, .json or .parquet (also .gz, .zst)"
        for file in found
        if not _kind(file)
    ]
    if problems:
        raise DataError(*problems)
    return [InputFile(str(file), _kind(file) or "") for file in found]


def check_kind(file: InputFile) -> None:
    """Raises ChangedError unless a file, whose contents are known by now, still is of the kind that it was taken for."""
    if file.contents is not None and _kind(Path(file.path), file.contents) != file.kind:
        raise ChangedError(file.path, "a list of rows became lines, or lines became a list")


def _kind(file: Path, contents: Contents | None = None) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in PACKED]
    last = suffixes[-1] if suffixes else ""
    if last == ".parquet":
        return "parquet"
    if last not in LINES:
        return None
    if last == ".json":
        with open_bytes(file, contents) as stream:
            start = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        return "array" if start.startswith(b"[") and not _is_one_line_list(file, contents) else "lines"
    return "lines"


def _is_one_line_list(file: Path, contents: Contents | None) -> bool:
    """A .json file whose every line is a list of messages (JSON lines all the same)."""
    with open_bytes(file, contents) as stream:
        lines = [line for line in islice(stream, 3) if line.strip()]
    try:
        return all(isinstance(orjson.loads(line), list) for line in lines) and len(lines) > 1
    except ValueError:
        return False


@contextmanager
def open_bytes(file: Path | str, contents: Contents | None = None) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked if it is .gz or .zst. Raises DataError if it cannot be read, ChangedError if `contents` are
    not what is in it."""
    name = str(file).lower()
    try:
        with open_known(str(file), contents) as stream:
            if name.endswith(".gz"):
                with gzip.open(stream, "rb") as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif name.endswith(".zst"):
                import pyarrow

                with pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd") as unpacked:
                    yield io.BufferedReader(unpacked, 1 << 20)
            else:
                yield stream
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{file}: cannot be read ({problem})") from None


def read_rows(
    file: InputFile, source: Source, first: int, stop: int | None, offset: int = 0
) -> Iterator[tuple[int, Any]]:
    """(row number from 0, parsed row or Bad) of rows first..stop; blank lines of JSON lines are left out. `offset`: the
    byte where row `first` of a file of lines starts (0: not known)."""
    if source.config.format == "oasst":
        rest = _read_rows(file, source, first, None, offset)  # a tree may end beyond `stop`
        return trees(rest, first, stop)
    return _read_rows(file, source, first, stop, offset)


def _read_rows(file: InputFile, source: Source, first: int, stop: int | None, offset: int) -> Iterator[tuple[int, Any]]:
    if file.kind == "lines":
        return _read_lines(file, first, stop, offset)
    if file.kind == "parquet":
        return _read_parquet(file, first, stop)
    rows: Any
    if file.kind == "demo":
        from sft_hydra.demo import conversations

        rows = islice(conversations.rows(file.path.removeprefix("demo:")), first, stop)
    elif file.kind == "builtin":
        rows = spelling.rows(file.path.removeprefix("builtin:"), first, stop)
    elif file.kind == "hub":
        data = hub_data(file.path, source.config)
        if file.fingerprint not in (None, str(data._fingerprint)):
            raise ChangedError(file.path, f"its fingerprint was {file.fingerprint} and is {data._fingerprint}")
        rows = (prune_nulls(data[index]) for index in range(first, min(len(data) if stop is None else stop, len(data))))
    else:
        rows = islice(_read_array(file), first, stop)
    return enumerate(rows, first)


def _read_lines(file: InputFile, first: int, stop: int | None, offset: int) -> Iterator[tuple[int, Any]]:
    number = first - 1
    with open_bytes(file.path, file.contents) as stream:
        if offset:
            stream.seek(offset)
        skipped = 0 if offset else first
        lines = islice(stream, skipped, None if stop is None else stop - first + skipped)
        for number, line in enumerate(lines, first):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                if b'"tool' in line and has_long_number(line):
                    raise ValueError("an integer of more than 64 bits may be in it")
                yield number, orjson.loads(line)
            except ValueError as problem:
                if line.strip():
                    yield number, _parse_slowly(line, problem)
    _check_rows(file, number + 1, stop)


def _check_rows(file: InputFile, read: int, stop: int | None) -> None:
    """Raises ChangedError if a planned file ended before the row that the plan says."""
    if file.contents is not None and stop is not None and read < stop:
        raise ChangedError(file.path, f"it ends after row {read:,} of {stop:,}")


def _parse_slowly(line: bytes, problem: ValueError) -> Any:
    """Long integers may be arguments of tools; NaN and lone surrogates occur in fields that do not matter."""
    try:
        return parse_leniently(line)
    except (ValueError, RecursionError):
        return MalformedRow(str(problem))


def _read_array(file: InputFile) -> list[Any]:
    with open_bytes(file.path, file.contents) as stream:
        try:
            return list(parse_leniently(stream.read()))
        except (ValueError, RecursionError) as problem:
            raise DataError(f"{file.path}: not a JSON array ({problem})") from None


def parquet_file(file: InputFile) -> Any:
    """A Parquet file, opened, and held to its contents if they are known. DataError if it is none."""
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


def _read_parquet(file: InputFile, first: int, stop: int | None) -> Iterator[tuple[int, Any]]:
    table = parquet_file(file)
    _check_rows(file, table.metadata.num_rows, stop)
    number = 0
    for group in range(table.metadata.num_row_groups):
        size = table.metadata.row_group(group).num_rows
        if number + size <= first or (stop is not None and number >= stop):
            number += size
            continue
        with _told_as_parquet(file.path):
            for batch in table.iter_batches(batch_size=512, row_groups=[group]):
                if number + batch.num_rows > first and (stop is None or number < stop):
                    for offset, row in enumerate(batch.to_pylist(), number):
                        if offset >= first and (stop is None or offset < stop):
                            yield offset, prune_nulls(row)
                number += batch.num_rows


def hub_data(path: str, config: SourceConfig) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, config.subset, split=config.split or "train")
    except Exception as problem:  # network, unknown id, unknown split: the library has many kinds
        raise DataError(
            f"{path}: cannot be loaded ({type(problem).__name__}: {problem}). Without the hub, give its files in its place: "
            "data.sources.<name>.path=<file or folder>"
        ) from None
