"""Where Triton's kernels run: in its interpreter on the CPU, and with `-m gpu` on a device."""

import os

import pytest
import torch

from sft_hydra.kernels import fused_choice


@pytest.fixture(
    params=[
        pytest.param(
            "cpu", marks=pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="needs the interpreter")
        ),
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif("not __import__('torch').cuda.is_available()")]
        ),
    ]
)
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device on which fused operations are Triton kernels."""
    pytest.importorskip("triton")
    monkeypatch.setattr(fused_choice, "DEVICE", request.param)
    return torch.device(request.param)
