"""Each kernel is tried once; what fails is replaced by plain torch. Every kernel compiles for an H100."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sft_hydra.kernels import fused_choice

SUPPORT = Path(__file__).parent.parent / "support"


@pytest.fixture
def untried(monkeypatch):
    monkeypatch.setattr(fused_choice, "_refused", {})


def test_all_are_used_where_they_run(fused, untried):
    assert fused_choice.try_fused(fused) == dict.fromkeys(fused_choice.OPERATIONS)
    assert fused_choice.is_fused("rotary", torch.ones(1, device=fused))


def test_one_that_fails_is_not_used(fused, untried, monkeypatch):
    def broken(device):
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr("sft_hydra.kernels.fused.norm.example", broken)
    tried = fused_choice.try_fused(fused)
    assert tried["rms_norm"] == "RuntimeError: no kernel image is available"
    assert not fused_choice.is_fused("rms_norm", torch.ones(1, device=fused))
    assert fused_choice.is_fused("rotary", torch.ones(1, device=fused))


def test_plain_torch_on_a_cpu(untried):
    assert set(fused_choice.try_fused(torch.device("cpu")).values()) == {"the device is cpu"}
    assert not fused_choice.is_fused("rotary", torch.ones(1))


def test_plain_torch_inside_compile(fused):
    seen = []

    def look(x):
        seen.append(fused_choice.is_fused("rotary", x))
        return x + 1

    torch.compile(look, backend="eager")(torch.ones(2, device=fused))
    assert seen == [False]


def test_every_kernel_compiles_for_an_h100(tmp_path):
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SUPPORT / "compile_triton.py")],
        env=os.environ
        | {
            "TRITON_INTERPRET": "0",
            "TRITON_CACHE_DIR": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(SUPPORT.parent), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) >= 12
