"""Which keys may be swept, and the folder name of each job of a sweep. Pure functions of overrides."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, Override

MAX_LABEL = 120  # characters; file systems allow 255
UNSWEEPABLE = ("cluster", "cluster.kind", "output_dir", "run_dir", "dry_run")


def sweep_problem(key: str) -> str | None:
    """The message if this key cannot be swept; else None."""
    key = key.lstrip("+~")
    if key in UNSWEEPABLE or key.split("/")[0].split(".")[0] == "hydra":
        return (
            f"{key} cannot be swept, because all jobs of a sweep share it; set one value, or run one command per value"
        )
    return None


def kind_problem(override: Override, is_group: bool) -> str | None:
    """The message if this kind of sweep is not supported; supported are lists of values, and `glob` over group options."""
    value: Any = override.value()
    key = override.key_or_group
    if isinstance(value, Glob) and not is_group:
        files = f"; several files as one data set: {key}='<folder>/*.jsonl'" if key.endswith("path") else ""
        return (
            f"{override.input_line}: glob(...) selects options of a group, but {key} is a value{files}; for one job per value: "
            f"-m {key}=<value>,<value>"
        )
    if override.is_interval_sweep():
        return (
            f"{override.input_line}: interval(...) needs a sweeper that searches, which is not supported; list the values: "
            f"{key}=1e-5,3e-5,1e-4"
        )
    return None


def job_label(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """`key=value,...` of the swept keys as a valid folder name, without `name`, which is the parent folder."""
    parts = []
    for text in overrides:
        key, _, value = text.partition("=")
        key = key.lstrip("+")
        if key in swept and key != "name":
            parts.append(re.sub(r"[^\w.=+@-]+", "_", f"{key}={value.replace(chr(39), '')}").strip("_"))
    label = ",".join(parts).lstrip("-.")  # as an argument or a folder it would be an option, or hidden
    if len(label) > MAX_LABEL:
        return f"{label[: MAX_LABEL - 9]}-{_short_hash(label)}"
    return label


def distinct_labels(labels: Sequence[str], overrides: Sequence[Sequence[str]]) -> list[str]:
    """Adds a hash to labels that are equal for different overrides (values that differ in a replaced character)."""
    return [
        f"{label}-{_short_hash(repr(list(overrides[i])))}" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
