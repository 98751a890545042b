"""The branches for CUDA, without a device: models run forward and backward on fake CUDA tensors in bf16, so that shapes,
dtypes and strides meet the checks of the real operators, and nothing may ask the device for a value."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_cuda import build, has_compiler

SUPPORT = Path(__file__).parent.parent / "support"
ATTENTION = {"qwen3": 3, "mistral_window": 3, "qwen3_moe": 3, "nano": 1, "super": 1}  # layers of each kind
NORMS = {"qwen3": 7, "mistral_window": 7, "qwen3_moe": 7, "nano": 6, "super": 5}
MIXTURES = {"qwen3_moe": 2, "nano": 2, "super": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool], dict[str, Any]]:
    if torch.backends.cuda.is_built():
        pytest.skip("this torch has CUDA devices of its own")
    if not has_compiler():
        pytest.skip("needs g++")
    library = build(tmp_path_factory.mktemp("fake"))
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "on_fake_cuda.py"), str(library)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(SUPPORT.parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {tuple(each["run"]): each for each in json.loads(done.stdout)}


@pytest.mark.parametrize(("kind", "lora"), [("none", False), ("none", True), ("selective", False), ("full", False)])
@pytest.mark.parametrize("family", ATTENTION)
def test_runs_on_the_fused_kernels_and_waits_for_nothing(runs: Any, family: str, kind: str, lora: bool) -> None:
    run = runs[family, kind, lora]
    called, passes = run["called"], 2 if kind == "full" else 1
    assert called["_varlen_attn"] == passes * ATTENTION[family]
    assert called["_varlen_attn_backward"] == ATTENTION[family]
    products = 3 if lora else 1  # of each of an expert layer's two matrices: the frozen one and the adapter's two
    backward = 5 if lora else 2  # of a frozen one the input's gradient alone
    assert called.get("_grouped_mm", 0) == MIXTURES.get(family, 0) * 2 * (passes * products + backward)
    layers = ATTENTION[family] if family not in ("nano", "super") else 0
    assert called.get("norm_rotate", 0) == (1 if kind == "none" else 2) * 2 * layers
    assert called["cross_entropy_"] == 1
    assert called["add_rms_norm_backward"] == NORMS[family] - lora  # nothing before the first adapter is trained
    assert called.get("combine_backward", 0) == MIXTURES.get(family, 0)
    assert not called.keys() & {"logsumexp", "relu", "rsqrt"}
    assert run["hidden"] == ["torch.bfloat16"]
    assert run["gradients"] == ["torch.float32"]
    assert run["without_gradient"] == 0
