"""Counts the NVIDIA GPUs that a process on this machine can use, without torch, from the driver's files.

Defines `cluster.gpus_per_node: null` on `cluster=local`: all of them, with one process each.
"""

import os
import re
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sft_hydra.schema.cluster import ClusterKind
from sft_hydra.schema.config import Device, SftConfig

DEVICES = Path("/dev")
DRIVER = Path("/proc/driver/nvidia/gpus")
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Gpus:
    """The number of usable GPUs and how they were counted."""

    count: int
    source: str
    """How they were counted, for messages."""

    def describe(self) -> str:
        """For the dry run: the number and its source."""
        return f"{self.count or 'none'} found ({self.source})"


def find_gpus(visible: str | None = None, devices: Path = DEVICES, driver: Path = DRIVER) -> Gpus:
    """`visible` is the value of CUDA_VISIBLE_DEVICES, None if it is not set; the folders are those of the machine."""
    files = sorted(path.name for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    folders = sorted(path.name for path in driver.glob("*")) if driver.is_dir() else []
    count = len(files) or len(folders)
    nothing = f"no {devices}/nvidia<N>, nothing in {driver}"
    source = f"{len(files)} in {devices}/nvidia<N>" if files else f"{len(folders)} in {driver}" if folders else nothing
    if visible is None:
        return Gpus(count, source)
    return Gpus(_visible(visible, count, _uuids(driver)), f"{source}; {VISIBLE}={visible!r}")


def _visible(text: str, count: int, uuids: list[str]) -> int:
    """How many of `count` GPUs CUDA shows: those before the first invalid entry, and 0 if an entry is repeated."""
    entries = [entry.strip() for entry in text.split(",")]
    if entries[0].startswith("MIG"):
        return min(1, count)  # a process sees one instance, however many are listed
    by_uuid = entries[0].startswith("GPU-")
    chosen: list[str] = []
    for entry in entries:
        if by_uuid:
            matches = [uuid for uuid in uuids if uuid.startswith(entry)] if uuids else [entry]  # a prefix will do
            if not entry.startswith("GPU-") or len(matches) != 1:
                break
            chosen.append(matches[0])
        else:
            number = re.match(r"\+?\d+", entry)
            if number is None or int(number[0]) >= count:
                break
            chosen.append(str(int(number[0])))
    return min(len(chosen), count) if len(set(chosen)) == len(chosen) else 0


def _uuids(driver: Path) -> list[str]:
    """UUIDs of the GPUs that the driver lists; may be empty."""
    texts = [file.read_text(errors="replace") for file in sorted(driver.glob("*/information"))]
    return [match[1] for text in texts if (match := re.search(r"GPU UUID:\s*(GPU-[\w-]+)", text))]


def gpus_here() -> Gpus:
    """GPUs of this machine for this process; 0 with a CPU-only build of torch."""
    found = find_gpus(os.environ.get(VISIBLE))
    if found.count and (build := _torch_build()).endswith("+cpu"):
        return Gpus(0, f"{found.source}; torch {build} cannot use them")
    return found


def _torch_build() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def with_gpus(cfg: SftConfig, found: Gpus) -> SftConfig:
    """Set `cluster.gpus_per_node` to the GPUs found, if it is null and the run is local.

    The demo uses one GPU: it is too small to be faster on several.
    """
    cluster = cfg.cluster
    is_open = cluster.kind is ClusterKind.local and cluster.gpus_per_node is None
    if not is_open or cfg.device in (Device.cpu, Device.mps) or is_demo(cfg) or found.count < 2:
        return cfg
    return replace(cfg, cluster=replace(cluster, gpus_per_node=found.count))


def is_demo(cfg: SftConfig) -> bool:
    """Whether this is the demo: a randomly initialized model on bundled conversations only."""
    sources = cfg.data.sources.values()
    bundled = bool(sources) and all((source.path or "").startswith("demo:") for source in sources)
    return cfg.model.path is None and bundled and not (cfg.data.path or cfg.data.blend)
