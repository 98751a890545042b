"""The sources of a config, their files, and iteration over the rows of any range of a file.

Invariant: a row keeps its origin (`file:line`); a line that is not JSON is a MalformedRow and does not stop the run.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from sft_hydra.chat.lenient_json import has_long_number, parse_leniently
from sft_hydra.data_prep import spelling
from sft_hydra.data_prep.benchmark_adapters import trees
from sft_hydra.data_prep.columns import parquet_rows
from sft_hydra.data_prep.contents import ChangedError
from sft_hydra.data_prep.files import InputFile, Listing, check_rows, input_file, list_folder, open_bytes
from sft_hydra.data_prep.hub_sets import hub_data, is_saved, other_splits, pruner, repository_files
from sft_hydra.data_prep.nulls import prune_row
from sft_hydra.data_prep.raw_text import FORMAT
from sft_hydra.errors import ConfigError, DataError
from sft_hydra.schema.data import DataConfig, SourceConfig

NUMBERS = ("weight", "epochs")  # keys of a blend entry that are numbers; all others are text
ONE_OF = (
    ("prompt", "prompt_file"),
    ("system_prompt", "system_prompt_file"),
    ("weight", "epochs"),
)  # setting one overrides the default of the other
TOGETHER = frozenset(name for names in ONE_OF for name in names)
TEXT_FIELD = "text_field"  # key of a blend entry of another tool: the column of raw text
MAX_ROW_BYTES = 32 << 20  # of one row: about eight million tokens
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """A named source. `only`: the one split that all its rows go to (`valid` for a separate validation file)."""

    name: str
    config: SourceConfig
    only: str | None = None


@dataclass(frozen=True, slots=True)
class MalformedRow:
    """Placeholder for a row that could not be parsed: the problem, and the `reason` under which it is counted."""

    problem: str
    reason: str = "malformed"


def sources_of(data: DataConfig) -> list[Source]:
    """The sources of `data.path`, or else of `data.blend` and `data.sources`, with `data.default` and prompt files applied.
    ConfigError if there are none, or if an option is invalid."""
    return [replace(source, config=_completed(source, data.default)) for source in _named_sources(data)]


def _completed(source: Source, default: SourceConfig) -> SourceConfig:
    """The options of a source with the defaults and the contents of its prompt files. ConfigError if one cannot be read."""
    options = {name: getattr(source.config, name) for name in SourceConfig.__dataclass_fields__}
    for names in ONE_OF:
        if all(options[name] is None for name in names):
            options |= {name: getattr(default, name) for name in names}
    options |= {
        name: getattr(default, name) for name, value in options.items() if value is None and name not in TOGETHER
    }
    options = {name: None if value == "" else value for name, value in options.items()}
    for name in ("prompt", "system_prompt"):
        if file := options[f"{name}_file"]:
            try:
                options[name] = Path(file).expanduser().read_text(encoding="utf-8")
            except OSError as problem:
                raise ConfigError(
                    f"source {source.name}: {name}_file={file} cannot be read ({problem.strerror})"
                ) from None
    return SourceConfig(**options)


def _named_sources(data: DataConfig) -> list[Source]:
    if data.path:
        found = [Source(Path(data.path).name.split(".")[0] or "data", SourceConfig(path=data.path))]
        if data.valid_path:
            found.append(Source("valid", SourceConfig(path=data.valid_path), only="valid"))
        return found
    found = _read_blend(Path(data.blend).expanduser()) if data.blend else []
    twice = sorted({source.name for source in found} & set(data.sources))
    if twice:
        raise ConfigError(
            f"data.blend={data.blend} and data.sources both define {', '.join(twice)}; rename one of them"
        )
    found += [Source(name, config) for name, config in data.sources.items()]
    problems = [f"data.sources.{source.name}.path is not set" for source in found if not source.config.path]
    if not found:
        problems = [
            "data: the config has no data source; use data=jsonl data.path=<file>, data=blend data.blend=<file> or "
            "data.sources.<name>.path=<file>"
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
        options = {key: value for key, value in entry.items() if key not in ("name", TEXT_FIELD)}
        if entry.get("format") == FORMAT and entry.get(TEXT_FIELD):
            options.setdefault("text_key", entry[TEXT_FIELD])
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
    problems += [f"{path}: duplicate name {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise ConfigError(*problems)
    return found


def files_of(source: Source) -> list[InputFile]:
    """The files of a source, sorted by path. DataError if there are none."""
    return listing_of(source).files


def listing_of(source: Source) -> Listing:
    """The files of a source, and those of its folder that are not read. DataError if there are none."""
    path = str(source.config.path)
    if path.startswith(("demo:", "builtin:")):
        return Listing([InputFile(path, path.partition(":")[0])])
    local = Path(path).expanduser()
    if is_saved(local):
        return Listing([InputFile(path, "hub")], other_splits(local, source.config))
    if local.is_dir() and not (source.config.split or source.config.subset):
        found = list_folder(local)
        if not found.files:
            raise DataError(f"{_nothing(source, path)}{_first(found.not_read)}")
        return found
    if local.is_file():
        files = [local]
    elif any(sign in path for sign in "*?["):
        base = Path(local.anchor) if local.is_absolute() else Path()
        files = sorted(file for file in base.glob(str(local.relative_to(local.anchor))) if file.is_file())
    elif local.is_dir() or HUB_ID.fullmatch(path) or path.startswith("hf://"):
        name = path.removeprefix("hf://").removeprefix("datasets/")
        chosen = repository_files(name, source.config.subset, source.config.split)
        if chosen is None:
            return Listing([InputFile(name, "hub")])
        files = chosen
    else:
        files = []
    if not files:
        raise DataError(_nothing(source, path))
    listed = [(file, input_file(file)) for file in files]
    problems = [
        f"source {source.name}: {file} is not a .jsonl, .json or .parquet file (the first two also as .gz or .zst)"
        for file, known in listed
        if known is None
    ]
    if problems:
        raise DataError(*problems)
    return Listing([known for _, known in listed if known is not None])


def _nothing(source: Source, path: str) -> str:
    return f"source {source.name}: {path} does not exist or contains no input files (expected a file, folder, glob, hub id or demo:<part>)"


def _first(not_read: dict[str, str]) -> str:
    shown = [f"{path} ({why})" for path, why in list(not_read.items())[:3]]
    return f". Not read: {', '.join(shown)}" if shown else ""


def read_rows(
    file: InputFile, source: Source, first: int, stop: int | None, offset: int = 0
) -> Iterator[tuple[int, Any]]:
    """(row number from 0, parsed row or MalformedRow) of rows first..stop (stop excluded; None: to the end); blank lines of
    JSON lines are skipped. `offset`: byte where row `first` of a file of lines starts (0: unknown). DataError if the file
    cannot be read, ChangedError if it changed since it was planned."""
    if source.config.format == "oasst":
        rest = _read_rows(file, source, first, None, offset)  # a tree may end beyond `stop`
        return trees(rest, first, stop)
    return _read_rows(file, source, first, stop, offset)


def _read_rows(file: InputFile, source: Source, first: int, stop: int | None, offset: int) -> Iterator[tuple[int, Any]]:
    if file.kind == "lines":
        return _read_lines(file, first, stop, offset)
    if file.kind == "parquet":
        return parquet_rows(file, first, stop)
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
        prune = pruner(data.features)
        end = len(data) if stop is None else min(stop, len(data))
        rows = (prune_row(data[index], prune) for index in range(first, end))
    else:
        rows = islice(_read_array(file), first, stop)
    return enumerate(rows, first)


def _read_lines(file: InputFile, first: int, stop: int | None, offset: int) -> Iterator[tuple[int, Any]]:
    number = first - 1
    with open_bytes(file.path, file.contents) as stream:
        if offset:
            stream.seek(offset)
        skipped = 0 if offset else first
        lines = islice(lines_of(stream), skipped, None if stop is None else stop - first + skipped)
        for number, line in enumerate(lines, first):
            if isinstance(line, MalformedRow):
                yield number, line
                continue
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                if b'"tool' in line and has_long_number(line):
                    raise ValueError("it may contain an integer of more than 64 bits")
                yield number, orjson.loads(line)
            except ValueError as problem:
                if line.strip():
                    yield number, _parse_slowly(line, problem)
    check_rows(file, number + 1, stop)


def lines_of(stream: IO[bytes]) -> Iterator[bytes | MalformedRow]:
    """The lines of a stream; a MalformedRow in place of each longer than MAX_ROW_BYTES, which is not kept in memory."""
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) <= MAX_ROW_BYTES:
            yield line
            continue
        size, end = len(line), line
        while not end.endswith(b"\n") and (end := stream.readline(MAX_ROW_BYTES)):
            size += len(end)
        yield MalformedRow(f"a line of {size:,} bytes; the limit of a row is {MAX_ROW_BYTES:,} bytes", "too_large")


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
