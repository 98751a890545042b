"""Machines that prepare together make the set that one machine makes."""

import dataclasses
from pathlib import Path

from sft_hydra.data_prep.prepare import open_existing, packed_folder, prepare, prepare_part
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import DataConfig, SourceConfig


def config(folder: Path) -> SftConfig:
    data = DataConfig(
        sources={"drill": SourceConfig(path="demo:drill")}, sample=120, num_shards=4, num_workers=1, num_parts=3
    )
    return SftConfig(output_dir=str(folder), seq_length=256, data=data)


def shards(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.parquet")}


def test_parts_make_the_same_set_as_one_machine(tmp_path: Path) -> None:
    whole = prepare(config(tmp_path / "whole"))
    cfg = config(tmp_path / "parts")
    for part in (2, 0, 1):
        prepare_part(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, part=part)))
        assert open_existing(cfg) is None
    spools = packed_folder(cfg).with_name(packed_folder(cfg).name + ".partial") / "spool"
    assert len(list(spools.glob("shard_*"))) == 4  # nothing is left for the run that finishes
    finished = prepare(cfg)
    assert shards(finished.folder) == shards(whole.folder)
    prepare_part(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, part=0)))
    assert not spools.exists()
