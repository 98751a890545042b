"""Which files of a data set repository `subset` and `split` select: `chosen_files`.

The card of a repository (README.md) may list the files of each split and configuration; otherwise folder and file names
decide. `subset` may be a configuration, a split, a folder or the stem of a file, as in other tools. Without `split`: the train split where there is one, else every split of the configuration.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import yaml

from sft_hydra.errors import DataError

READ = re.compile(r"(.+?)\.(?:jsonl|ndjson|json|parquet)(?:\.gz|\.zst)?")
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "package.json")
NUMBERED = (
    r"(?:[-_.](?:part[-_]?)?\d+(?:[-_]of[-_]\d+)?(?:-[0-9a-f]{8,})?)?"  # train-00000-of-00002, infinibyte.part_01
)
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
FRONT = re.compile(r"---\n(.*?\n)---", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One split of one configuration: the patterns of its files."""

    config: str
    split: str
    patterns: tuple[str, ...]
    is_default: bool


def chosen_files(names: list[str], card: str, subset: str | None, split: str | None, where: str) -> list[str] | None:
    """The selected files of a repository, sorted; None if only the `datasets` library can read them. `names`: its files,
    `card`: the text of its README.md, `where`: its name in errors. DataError, with the choices, if nothing matches."""
    readable = sorted(name for name in names if READ.fullmatch(name) and name.rsplit("/", 1)[-1] not in ABOUT)
    parts = _parts(card)
    if parts:
        found = _of_card(readable, parts, subset, split)
        missing = not found and _parts_for(parts, subset, split)
    else:
        found = _of_names(readable, subset, split)
        missing = False
    if found:
        return found
    if not readable or missing:  # other formats, or the card refers to files elsewhere
        return None
    choices = sorted(
        {part.config for part in parts} | {part.split for part in parts} | {_stem(name) for name in readable}
    )
    requested = ", ".join(f"{key}={value}" for key, value in (("subset", subset), ("split", split)) if value)
    raise DataError(
        f"{where}: no files match {requested or 'a data set without subset'}; available: {', '.join(choices[:40])}"
    )


def _of_card(names: list[str], parts: list[Part], subset: str | None, split: str | None) -> list[str]:
    chosen = _parts_for(parts, subset, split)
    patterns = [pattern for part in chosen for pattern in part.patterns]
    found = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    return found or (_of_names(names, subset, split) if subset and not chosen else [])


def _parts_for(parts: list[Part], subset: str | None, split: str | None) -> list[Part]:
    if subset is None:
        configs = {part.config for part in parts}
        chosen = parts if len(configs) == 1 else [part for part in parts if part.is_default]
    else:
        chosen = [part for part in parts if part.config == subset]
        if not chosen and split is None:
            return [part for part in parts if part.split == subset]
    if split is not None:
        return [part for part in chosen if part.split == split]
    return [part for part in chosen if part.split == "train"] or chosen


def _of_names(names: list[str], subset: str | None, split: str | None) -> list[str]:
    found = [name for name in names if subset is None or _is_called(name, subset)]
    if split is not None:
        named = [name for name in found if _is_called(name, split)]
        unnamed = split == "train" and not any(_is_called(name, other) for name in found for other in SPLITS)
        found = found if unnamed else named  # files without a split in their name are for training
    else:
        found = [name for name in found if _is_called(name, "train")] or found
    return found


def _is_called(name: str, word: str) -> bool:
    """True if a parent folder of a file, or the file itself apart from a shard number, has this name."""
    return word in name.split("/")[:-1] or re.fullmatch(re.escape(word) + NUMBERED, _stem(name)) is not None


def _stem(name: str) -> str:
    match = READ.fullmatch(name.rsplit("/", 1)[-1])
    return match[1] if match else name


def _parts(card: str) -> list[Part]:
    front = FRONT.match(card.removeprefix("\ufeff").replace("\r\n", "\n"))
    try:
        front_matter = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return []
    configs = front_matter.get("configs") if isinstance(front_matter, dict) else None
    parts: list[Part] = []
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and config.get("data_files"):
            name = str(config.get("config_name", "default"))
            is_default = bool(config.get("default")) or name == "default"
            base = str(config["data_dir"]).strip("/") + "/" if config.get("data_dir") else ""
            parts += [
                Part(name, split, patterns, is_default) for split, patterns in _splits(config["data_files"], base)
            ]
    return parts


def _splits(data_files: Any, base: str) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(data_files, str):
        return [("train", (base + data_files,))]
    if not isinstance(data_files, list):
        return []
    texts = tuple(base + entry for entry in data_files if isinstance(entry, str))
    found = [("train", texts)] if texts else []
    for entry in data_files:
        if isinstance(entry, dict):
            paths = entry.get("path") or []
            patterns = tuple(base + str(path) for path in ([paths] if isinstance(paths, str) else paths))
            found.append((str(entry.get("split", "train")), patterns))
    return found
