"""Rules about `data`: where rows come from, which turns are trained, how they are split."""

from collections.abc import Iterator

from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner

DATA_RUNNERS = (Runner.train, Runner.data_prep, Runner.inspect)


def data_is_set(cfg: SftConfig) -> Iterator[str]:
    """There is data, from one place only, and every source has a path."""
    data = cfg.data
    if cfg.runner not in DATA_RUNNERS:
        return
    if not (data.path or data.blend or data.sources or data.packed_dir):
        needs = {
            "jsonl": "data.path=<file.jsonl>",
            "blend": "data.blend=<blend.json> or +data.sources.<name>.path=<file.jsonl>",
            "packed": "data.packed_dir=<folder of packed Parquet shards>",
        }
        yield f"data={data.name} has no source; set {needs.get(data.name, 'data.path=<file.jsonl>')}"
    if data.trust_foreign and not data.packed_dir:
        yield "data.trust_foreign=true needs data.packed_dir=<folder of packed Parquet shards>"
    others = {"data.blend": data.blend, "data.sources": ", ".join(data.sources)}
    if data.path and (conflicting := [f"{key} ({value})" for key, value in others.items() if value]):
        yield (
            f"data.path={data.path} conflicts with {' and '.join(conflicting)} of data={data.name}: to train on this file only use "
            "data=jsonl; to train on several sources use data=blend +data.sources.<name>.path=<file>"
        )
    for name, source in data.sources.items():
        if not source.path:
            yield f"data.sources.{name} has no path; set data.sources.{name}.path=<file, folder or hub id>"
        if source.weight is not None and source.epochs is not None:
            yield f"data.sources.{name} has weight={source.weight} and epochs={source.epochs}; set only one of them"


def roles_are_known(cfg: SftConfig) -> Iterator[str]:
    """`data.roles_to_train` lists at least one role, and only known ones."""
    roles = cfg.data.roles_to_train
    known = ("assistant", "user", "system", "developer", "tool")
    if not roles or not set(roles).issubset(known):
        yield f"data.roles_to_train={list(roles)} must contain one or more of {', '.join(known)}"


def splits_sum_to_one(cfg: SftConfig) -> Iterator[str]:
    """The ratios of `data.split` sum to 1."""
    split = cfg.data.split
    total = split.train + split.valid + split.test
    if abs(total - 1) > 1e-6:
        yield f"data.split: train {split.train} + valid {split.valid} + test {split.test} = {total:g}; they must sum to 1"
