"""Assigns the files of a folder packed by another tool to splits: `split_files(folder)`.

Supported: `splits/{train,valid,test}/` next to what it links to (the output of NVIDIA's Nemotron recipe), folders train,
valid and test (also training, validation, val), files with such names, and one folder of files, all for training. An
ambiguous tree is an error, because training on rows twice or on validation rows would go unnoticed.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sft_hydra.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val"),
    "test": ("test",),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
SPLITS_FOLDER = "splits"
RUNS_FOLDER = "runs"  # folder of the recipe with the shards that its splits link to
STEM = re.compile(rf"({'|'.join(sorted(SPLIT_OF, key=len, reverse=True))})(?:[-_.].*)?")
WAYS = "use a folder with train/, valid/ and test/ (or splits/ with these), or one folder of training shards"


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of each split, sorted by name. DataError if there are none or a split is ambiguous."""
    base = folder / SPLITS_FOLDER
    if base.is_dir():
        others = _places(folder)
        if others:
            raise DataError(f"{folder}: both {SPLITS_FOLDER}/ and {_named(folder, others)} hold Parquet files; {WAYS}")
    else:
        base = folder
    found = _of_level(base)
    _check(folder, found)
    return found


def _of_level(base: Path) -> dict[str, list[Path]]:
    splits = _places(base)
    found: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES}
    loose = _parquet_files(base)
    folders = [entry for entry in _folders(base) if entry.name not in SPLIT_OF and any(_below(entry))]
    if splits:
        for split, places in splits.items():
            kinds = {place.parent if place.is_file() else place for place in places}
            if len(kinds) > 1:
                raise DataError(
                    f"{base}: {', '.join(sorted(p.name for p in places))} could all be the {split} split; {WAYS}"
                )
            for place in places:
                found[split] += [place] if place.is_file() else _of_split(place, split)
        rest = [file for file in loose if _split_of(file) is None]
        rest += [entry for entry in folders if entry.name != RUNS_FOLDER]
        if rest:
            names = ", ".join(sorted(entry.name for entry in rest)[:5])
            raise DataError(f"{base}: {names} are next to the splits but belong to none; {WAYS}")
    elif loose and not folders:
        found["train"] = loose
    elif len(folders) == 1 and not loose and folders[0].name != RUNS_FOLDER:
        return _of_level(folders[0])
    elif folders:
        names = ", ".join(sorted(entry.name + "/" for entry in folders)[:5]) + (" and loose files" if loose else "")
        raise DataError(f"{base}: Parquet files in {names} belong to no known split; {WAYS}")
    return found


def _places(base: Path) -> dict[str, list[Path]]:
    """Non-empty folders and files of this folder with the name of a split."""
    places: dict[str, list[Path]] = {}
    for entry in _folders(base):
        if entry.name in SPLIT_OF and any(_below(entry)):
            places.setdefault(SPLIT_OF[entry.name], []).append(entry)
    for file in _parquet_files(base):
        if split := _split_of(file):
            places.setdefault(split, []).append(file)
    return places


def _of_split(place: Path, split: str) -> list[Path]:
    files = sorted(_below(place))
    for file in files:
        inner = {SPLIT_OF[part] for part in file.relative_to(place).parts[:-1] if part in SPLIT_OF} - {split}
        if inner:
            raise DataError(f"{file}: in the folder of split {split}, but also in a folder named {inner.pop()}; {WAYS}")
    return files


def _check(folder: Path, found: dict[str, list[Path]]) -> None:
    files = [(split, file) for split, listed in found.items() for file in listed]
    lost = [file for _, file in files if not file.is_file()]
    if lost:
        raise DataError(f"{lost[0]}: broken link ({len(lost)} of {len(files)} files); pack the data again")
    if not files:
        arrays = (
            " (.npy files with pickled objects are not supported; pack to Parquet)"
            if any(folder.rglob("*.npy"))
            else ""
        )
        raise DataError(f"{folder}: contains neither a metadata.json of sft_hydra nor Parquet files{arrays}")
    seen: dict[Path, tuple[str, Path]] = {}
    for split, file in files:
        before = seen.setdefault(file.resolve(), (split, file))
        if before != (split, file):
            raise DataError(
                f"{file} ({split}) and {before[1]} ({before[0]}) are the same file; each file must belong to one split only"
            )
    runs = sorted({run for _, file in files if (run := _run_of(file)) is not None})
    if len(runs) > 1:
        raise DataError(
            f"{folder}: its splits link to shards of {len(runs)} preparations ({', '.join(runs[:3])}), which mixes old data in; "
            f"delete {SPLITS_FOLDER}/ and pack again, or use a folder with only the intended links"
        )


def _run_of(file: Path) -> str | None:
    """The run of a shard in runs/<run>/datasets/<name>/<plan>/."""
    parts = file.resolve().parts
    if len(parts) > 6 and parts[-4] == "datasets" and parts[-6] == RUNS_FOLDER:
        return parts[-5]
    return None


def _split_of(file: Path) -> str | None:
    match = STEM.fullmatch(file.stem)
    return SPLIT_OF[match[1]] if match else None


def _folders(base: Path) -> list[Path]:
    return sorted(entry for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _parquet_files(base: Path) -> list[Path]:
    return sorted(entry for entry in base.iterdir() if _is_parquet(entry.name) and not entry.is_dir())


def _below(base: Path) -> Iterator[Path]:
    """All Parquet files under a folder, following links, each folder once."""
    visited: set[str] = set()
    for here, folders, files in os.walk(base, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here) / name for name in files if _is_parquet(name))


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith((".", "_"))


def _named(folder: Path, places: dict[str, list[Path]]) -> str:
    return ", ".join(sorted(str(place.relative_to(folder)) for listed in places.values() for place in listed)[:5])
