"""Data sets that the `datasets` library reads: of the hub, and folders that `save_to_disk` wrote."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sft_hydra.data_prep.nulls import prune_nulls
from sft_hydra.errors import DataError
from sft_hydra.schema.data import SourceConfig

ONE, SEVERAL = "state.json", "dataset_dict.json"  # what save_to_disk leaves in the folder of a set, and of its splits


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / SEVERAL).is_file() or ((folder / ONE).is_file() and (folder / "dataset_info.json").is_file())


def other_splits(folder: Path, config: SourceConfig) -> dict[str, str]:
    """Splits of a saved folder that a source does not read: path -> why."""
    if not (folder / SEVERAL).is_file():
        return {}
    taken = config.split or "train"
    names = json.loads((folder / SEVERAL).read_text(encoding="utf-8")).get("splits", [])
    return {str(folder / name): f"another split than {taken}" for name in names if name != taken}


def hub_data(path: str, config: SourceConfig) -> Any:
    """The data set. Raises DataError."""
    import datasets

    local = Path(path).expanduser()
    try:
        if not is_saved(local):
            return datasets.load_dataset(path, config.subset, split=config.split or "train")
        found = datasets.load_from_disk(str(local))
        return found[config.split or "train"] if isinstance(found, datasets.DatasetDict) else found
    except Exception as problem:  # network, unknown id, unknown split: the library has many kinds
        raise DataError(
            f"{path}: cannot be loaded ({type(problem).__name__}: {problem}). Without the hub, give its files in its place: "
            "data.sources.<name>.path=<file or folder>"
        ) from None


def pruner(features: Any) -> Callable[[Any], Any]:
    """What takes the nulls out of a row that its columns invented: those of a column of JSON are the row's own."""
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
