"""Finds the file in `eval.data_dir` with the items of a task."""

from pathlib import Path

from sft_hydra.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
SHORT = {"validation": "val"}  # short names of splits in file names
STAND_INS = {"test": ("test", "validation", "")}  # "": a file without a split in its name


def local_items(task: str, split: str, data_dir: str) -> Path:
    """`<task>_<split>` with one of SUFFIXES; instead of `test`, also `validation` or a file without a split.
    DataError lists the names that were tried."""
    folder = Path(data_dir).expanduser()
    splits = STAND_INS.get(split, (split,))
    words = [word for part in splits for word in dict.fromkeys((part, SHORT.get(part, part)))]
    stems = [f"{task}_{word}" if word else task for word in words]
    for stem in stems:
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    use = "remove the task" if split in STAND_INS else "eval.num_fewshot=0 needs no examples"
    raise DataError(
        f"eval.data_dir={data_dir}: no file with the {split} split of {task}; expected {', '.join(stems)} (.jsonl, also "
        f".gz, .zst; .json, .parquet). Add the file, set eval.data_dir=null to load from the hub, or {use}"
    )
