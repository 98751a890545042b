"""Data sets read with the `datasets` library: from the hub, and folders written by `save_to_disk`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sft_hydra.data_prep.hub_layout import chosen_files
from sft_hydra.data_prep.nulls import prune_nulls
from sft_hydra.errors import DataError
from sft_hydra.hub import reach_hub
from sft_hydra.schema.data import SourceConfig

ONE, SEVERAL = "state.json", "dataset_dict.json"  # marker files of save_to_disk: for one data set, for several splits


def is_saved(folder: Path) -> bool:
    """True if `save_to_disk` wrote this folder."""
    return (folder / SEVERAL).is_file() or ((folder / ONE).is_file() and (folder / "dataset_info.json").is_file())


def other_splits(folder: Path, config: SourceConfig) -> dict[str, str]:
    """Splits of a saved folder that a source does not read: path -> reason."""
    if not (folder / SEVERAL).is_file():
        return {}
    taken = config.split or "train"
    names = json.loads((folder / SEVERAL).read_text(encoding="utf-8")).get("splits", [])
    return {str(folder / name): f"not the split {taken}" for name in names if name != taken}


def repository_files(path: str, subset: str | None, split: str | None) -> list[Path] | None:
    """The selected files of a data set repository (a folder or a hub id), downloaded if necessary, to be read directly: rows of
    a file need not have the same columns. None if the `datasets` library must read it. DataError if nothing matches."""
    local = Path(path).expanduser()
    if local.is_dir():
        names = [str(file.relative_to(local)) for file in local.rglob("*") if file.is_file()]
        card = local / "README.md"
        chosen = chosen_files(names, card.read_text(encoding="utf-8") if card.is_file() else "", subset, split, path)
        return None if chosen is None else [local / name for name in chosen]
    if not reach_hub():
        return None
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi().list_repo_files(path, repo_type="dataset")
        card_text = ""
        if "README.md" in names:
            file = huggingface_hub.hf_hub_download(path, "README.md", repo_type="dataset")
            card_text = Path(file).read_text(encoding="utf-8")
        chosen = chosen_files(names, card_text, subset, split, path)
        if chosen is None:
            return None
        folder = Path(huggingface_hub.snapshot_download(path, repo_type="dataset", allow_patterns=chosen))
    except DataError:
        raise
    except Exception:  # network, unknown id, permission: the library may have it in its cache, or reports the error
        return None
    return [folder / name for name in chosen]


def hub_data(path: str, config: SourceConfig) -> Any:
    """The data set as a `datasets.Dataset`. DataError if it cannot be loaded."""
    reach_hub()
    import datasets

    local = Path(path).expanduser()
    try:
        if not is_saved(local):
            if config.split:
                return datasets.load_dataset(path, config.subset, split=config.split)
            splits = datasets.load_dataset(path, config.subset)
            return splits["train"] if "train" in splits else datasets.concatenate_datasets(list(splits.values()))
        found = datasets.load_from_disk(str(local))
        return found[config.split or "train"] if isinstance(found, datasets.DatasetDict) else found
    except Exception as problem:  # network, unknown id, unknown split: many exception types
        raise DataError(
            f"{path}: cannot be loaded ({type(problem).__name__}: {problem}). Without access to the hub use a local copy: "
            "data.sources.<name>.path=<file or folder>"
        ) from None


def pruner(features: Any) -> Callable[[Any], Any]:
    """A function that removes from a row the nulls that a data set with `features` adds; nulls inside a JSON column belong to
    the row and stay."""
    import datasets

    def prune(feature: Any, value: Any) -> Any:
        if isinstance(feature, datasets.Json):
            return value
        if isinstance(feature, dict) and isinstance(value, dict):
            return {key: prune(feature.get(key), item) for key, item in value.items() if item is not None}
        if isinstance(value, list):
            inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
            return [prune(inner, item) for item in value]
        return prune_nulls(value)

    return partial(prune, dict(features or {}))
