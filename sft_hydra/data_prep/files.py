"""Input files of a source: their kind, their decompressed bytes in UTF-8, and the files of a folder that are not read.

Invariant: a file is read completely, raises an error, or is in `not_read`; suffixes are case-insensitive.
"""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from sft_hydra.data_prep.contents import ChangedError, Contents, open_known
from sft_hydra.errors import DataError

LINES = (".jsonl", ".json", ".ndjson")
PACKED = (".gz", ".zst")
BOMS = (  # longest first: UTF-32 begins as UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WITHOUT_BOM = {(True, False): "utf-16-be", (False, True): "utf-16-le"}  # which bytes of the first character are zero
LONGEST_LINE = 64 << 20  # bytes; a longer first line that starts with [ is an array


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file, hub data set or generated part of a source; `kind` is lines, array, parquet, hub, demo or builtin. `plain`:
    rows can be located by the line ends in its bytes (neither compressed nor re-encoded). In a plan, `contents` are the
    expected checksums of the file, `fingerprint` the expected one of a hub data set."""

    path: str
    kind: str
    plain: bool = True
    contents: Contents | None = field(default=None, compare=False)
    fingerprint: str | None = field(default=None, compare=False)


@dataclass(slots=True)
class Listing:
    """Files of a source sorted by path; `not_read`: path -> reason for each file of its folder that is not read."""

    files: list[InputFile]
    not_read: dict[str, str] = field(default_factory=dict)


def is_packed(path: Path | str) -> bool:
    """True if the name is that of a compressed file (.gz, .zst)."""
    return str(path).lower().endswith(PACKED)


def suffix_of(file: Path) -> str:
    """The suffix of a file's format in lower case, without that of its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in PACKED]
    return suffixes[-1] if suffixes else ""


def input_file(file: Path, contents: Contents | None = None) -> InputFile | None:
    """The input file at a path; None if its suffix is not that of rows. DataError if it cannot be read, ChangedError if it
    differs from `contents`."""
    suffix = suffix_of(file)
    if suffix == ".parquet":
        return None if is_packed(file) else InputFile(str(file), "parquet")
    if suffix not in LINES:
        return None
    kind = "array" if _is_array(file, contents) else "lines"
    return InputFile(str(file), kind, kind == "lines" and not is_packed(file) and _encoding(file, contents) is None)


def check_kind(file: InputFile) -> None:
    """ChangedError if a file with known contents is no longer of the kind that was detected."""
    if file.contents is not None and input_file(Path(file.path), file.contents) != file:
        raise ChangedError(file.path, "it switched between a JSON array and JSON lines")


def check_rows(file: InputFile, read: int, stop: int | None) -> None:
    """ChangedError if a planned file has fewer rows (`read`) than the plan expects (`stop`)."""
    if file.contents is not None and stop is not None and read < stop:
        raise ChangedError(file.path, f"it has {read:,} rows instead of {stop:,}")


def list_folder(folder: Path) -> Listing:
    """All files of rows in a folder and its subfolders; those that cannot be read are in `not_read`."""
    found: list[InputFile] = []
    not_read: dict[str, str] = {}

    def unreadable(problem: OSError) -> None:
        not_read[str(problem.filename)] = f"cannot be read ({problem.strerror})"

    for place, folders, names in os.walk(folder, onerror=unreadable):
        for name in folders:
            if (Path(place) / name).is_symlink():
                not_read[str(Path(place) / name)] = "link to a folder"
        for name in names:
            path = Path(place) / name
            if (why := _why_not(path)) is not None:
                not_read[str(path)] = why
            elif file := input_file(path):
                found.append(file)
            else:
                not_read[str(path)] = "not .jsonl, .json or .parquet"
    return Listing(sorted(found, key=lambda file: Path(file.path)), dict(sorted(not_read.items())))


def _why_not(path: Path) -> str | None:
    """The reason why a file of a folder cannot be read; None if it can."""
    if not path.exists():
        return "broken link"
    if not path.is_file():
        return "not a file"
    return None if os.access(path, os.R_OK) else "cannot be read (Permission denied)"


def _is_array(file: Path, contents: Contents | None) -> bool:
    """True for one JSON list of rows, over any number of lines; false for JSON lines, which may be lists of messages."""
    with open_bytes(file, contents) as stream:
        start = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start.startswith(b"["):
            return False
    with open_bytes(file, contents) as stream:
        lines = (
            line for line in iter(lambda: stream.readline(LONGEST_LINE), b"") if line.strip(b"\xef\xbb\xbf \t\r\n")
        )
        first, second = next(lines, b""), next(lines, None)
    row = _parsed(first.removeprefix(b"\xef\xbb\xbf"))
    if second is not None:  # a whole value in a line by itself: lines, of which others may be malformed
        return row is None and (start.split(b"\n")[0].strip() == b"[" or _parsed(second) is None)
    if row is None:
        return True
    return not (
        row and isinstance(row[0], dict) and ("role" in row[0] or "from" in row[0]) and suffix_of(file) != ".json"
    )


def _parsed(line: bytes) -> Any:
    """The JSON value of a line; None if it is not one."""
    try:
        return orjson.loads(line)
    except ValueError:
        return None


def _encoding(file: Path, contents: Contents | None) -> str | None:
    """The encoding of a file that is in UTF-16 or UTF-32; None for UTF-8."""
    with _unpacked(file, contents) as stream:
        start = stream.read(4)
    return _encoding_of(start)


def _encoding_of(start: bytes) -> str | None:
    for bom, name in BOMS:
        if start.startswith(bom):
            return name
    return WITHOUT_BOM.get((start[0] == 0, start[1] == 0)) if len(start) == 4 else None


@contextmanager
def open_bytes(file: Path | str, contents: Contents | None = None) -> Iterator[IO[bytes]]:
    """A stream of a file's bytes, decompressed if it is .gz or .zst, and re-encoded to UTF-8 from UTF-16 or UTF-32. DataError if
    it cannot be read, ChangedError if it differs from `contents`."""
    try:
        with _unpacked(file, contents) as stream:
            encoding = _encoding_of(stream.peek(4)[:4])  # type: ignore[attr-defined]
            if encoding is None:
                yield stream
            else:
                yield io.BufferedReader(_Recoded(stream, encoding), 1 << 20)  # type: ignore[type-var]
    except (OSError, EOFError, zlib.error, UnicodeError) as problem:
        raise DataError(f"{file}: cannot be read ({problem})") from None


@contextmanager
def _unpacked(file: Path | str, contents: Contents | None) -> Iterator[Any]:
    name = str(file).lower()
    with open_known(str(file), contents) as stream:
        if name.endswith(".gz"):
            with gzip.open(stream, "rb") as unpacked:
                yield unpacked
        elif name.endswith(".zst"):
            import pyarrow

            with pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd") as unpacked:
                yield io.BufferedReader(unpacked, 1 << 20)
        else:
            yield stream


class _Recoded(io.RawIOBase):
    """A stream of another encoding, re-encoded as UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.waiting = b""
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self.waiting and not self.ended:
            block = self.stream.read(1 << 16)
            self.ended = not block
            self.waiting = self.decoder.decode(block, final=self.ended).encode("utf-8", "surrogatepass")
        taken, self.waiting = self.waiting[: len(target)], self.waiting[len(target) :]
        target[: len(taken)] = taken
        return len(taken)
