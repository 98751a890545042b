"""Which file of `eval.data_dir` holds the items of a task."""

from pathlib import Path

from sft_hydra.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
SHORT = {"validation": "val"}  # what files call a split for short
STAND_INS = {"test": ("test", "validation", "")}  # "": a file without a split in its name


def local_items(task: str, split: str, data_dir: str) -> Path:
    """`<task>_<split>` with one of SUFFIXES; in place of a `test` file, `validation` or one without a split serves.
    DataError says what was looked for."""
    folder = Path(data_dir).expanduser()
    splits = STAND_INS.get(split, (split,))
    words = [word for part in splits for word in dict.fromkeys((part, SHORT.get(part, part)))]
    stems = [f"{task}_{word}" if word else task for word in words]
    for stem in stems:
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    use = "leave the task out" if split in STAND_INS else "eval.num_fewshot=0 needs no examples"
    raise DataError(
        f"eval.data_dir={data_dir}: no file with the {split} split of {task}; looked for {', '.join(stems)} (.jsonl, also "
        f".gz, .zst; .json, .parquet). Put it there, set eval.data_dir=null to load from the hub, or {use}"
    )
