"""GPUs are counted as CUDA shows them, from the files of a driver, here of one that is made up."""

from pathlib import Path

import pytest

from sft_hydra.config.gpus import Gpus, find_gpus, with_gpus
from sft_hydra.planning.topology import ranks_per_node

UUIDS = ("GPU-11aa-1", "GPU-11bb-2", "GPU-22cc-3", "GPU-33dd-4")
FOUR = Gpus(4, "made up")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """Four GPUs, with what else a driver puts beside them."""
    devices, driver = tmp_path / "dev", tmp_path / "gpus"
    devices.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (devices / name).touch()
    (devices / "nvidia-caps").mkdir()
    for i, uuid in enumerate(UUIDS):
        (driver / f"0000:0{i}:00.0").mkdir(parents=True)
        (driver / f"0000:0{i}:00.0/information").write_text(f"Model: \t\t X\nGPU UUID: \t {uuid}\n")
    return {"devices": devices, "driver": driver}


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4), ("", 0), ("-1", 0), ("0", 1), ("2,3", 2), (" 0 , 1 ", 2), ("3,2,1,0", 4), ("0,1,2,3,4", 4), ("0,-1,1", 1),
        ("4", 0), ("0,9,1", 1), ("0,0", 0), ("none", 0), ("NoDevFiles", 0), ("0,GPU-11aa-1", 1),
        ("GPU-11aa-1", 1), ("GPU-22,GPU-33", 2), ("GPU-11", 0), ("GPU-11aa,GPU-none,GPU-33", 1), ("GPU-22,GPU-22cc", 0), ("GPU-22,0", 1),
        ("MIG-5c89,MIG-77aa", 1), ("MIG-GPU-11aa-1/1/0", 1),
    ],
)  # fmt: skip
def test_count(machine, visible, count):
    found = find_gpus(visible, **machine)
    assert found.count == count
    assert found.describe().startswith("none found" if not count else f"{count} found")
    assert (f"CUDA_VISIBLE_DEVICES={visible!r}" in found.source) == (visible is not None)


def test_a_container_that_shows_the_driver_alone_or_the_devices_alone(machine, tmp_path):
    nothing = tmp_path / "nothing"
    assert find_gpus(None, machine["devices"], nothing).count == 4
    assert find_gpus(None, nothing, machine["driver"]).count == 4
    assert find_gpus("GPU-11aa,GPU-22", machine["devices"], nothing).count == 2  # whose names nobody can look up
    (machine["devices"] / "nvidia3").unlink()
    assert find_gpus(None, **machine).count == 3  # the driver describes what this container may not use


def test_a_machine_without_gpus(tmp_path):
    for visible in (None, "", "0", "GPU-1", "MIG-1"):
        assert find_gpus(visible, tmp_path / "dev", tmp_path / "gpus").count == 0


@pytest.mark.parametrize(
    ("arguments", "ranks"),
    [
        (["model=qwen3_0_6b", "peft=lora"], 4), (["model=qwen3_0_6b", "device=cuda"], 4),
        (["model=qwen3_0_6b", "cluster.gpus_per_node=2"], 2), (["model=qwen3_0_6b", "device=cpu"], 1), ([], 1),
        (["model=tiny_nemotron_h"], 1), (["data=jsonl", "data.path=chats.jsonl"], 4),
        (["model=qwen3_0_6b", "cluster=slurm", "train.global_batch_size=8"], 8),
    ],
)  # fmt: skip
def test_ranks_of_a_machine_with_four(resolved, arguments, ranks):
    Path("chats.jsonl").touch()
    assert ranks_per_node(with_gpus(resolved(*arguments), FOUR)) == ranks
