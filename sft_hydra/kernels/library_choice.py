"""Which kernels of installed libraries are used: those of flash-attn, causal-conv1d and mamba-ssm, and torch's own attention
over rows of several documents.

`try_kernels` runs each once on small tensors at the start of a run. An installed package may still not
work: it may be built for another torch or another GPU, or be a release with other functions. Kernels that fail are not used.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

FLASH_ATTN, VARLEN_ATTN, CAUSAL_CONV1D, MAMBA_SSM = "flash-attn", "torch varlen_attn", "causal-conv1d", "mamba-ssm"
DEVICE = "cuda"  # tests set "cpu"
_MODULES = {FLASH_ATTN: "flash_attn", CAUSAL_CONV1D: "causal_conv1d", MAMBA_SSM: "mamba_ssm"}
_refused: dict[str, str] = {name: "not installed" for name, module in _MODULES.items() if find_spec(module) is None}


def is_used(kernel: str) -> bool:
    """Whether a kernel (FLASH_ATTN and so on) is used, as far as it is known: before `try_kernels` if it is installed."""
    return kernel not in _refused


def why_not(kernel: str) -> str | None:
    """Why a kernel is not used on CUDA; None if it is."""
    return _refused.get(kernel)


def try_kernels(device: torch.device) -> dict[str, str | None]:
    """Run every kernel on `device` once, forward and backward. Call it once, before the model runs.

    Returns for each name None if the kernel is used, or why it is not.
    """
    if device.type != DEVICE:
        return dict.fromkeys(_EXAMPLES, f"the device is {device.type}")
    for name, example in _EXAMPLES.items():
        if name in _refused:
            continue
        try:
            example(device)
        except Exception as error:  # packages fail in as many ways as they can be built
            _refused[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return {name: _refused.get(name) for name in _EXAMPLES}


def named(kernel: str) -> str:
    """A kernel's name with the version of its package."""
    try:
        return f"{kernel} {version(kernel)}"
    except PackageNotFoundError:  # torch's own, or a build without metadata
        return kernel


def _flash_attn(device: torch.device) -> None:
    from sft_hydra.kernels.attention import attend_flash_attn

    _attention(attend_flash_attn, device)


def _varlen_attn(device: torch.device) -> None:
    from sft_hydra.kernels.attention import attend_varlen

    _attention(attend_varlen, device)


def _attention(attend: Callable[..., torch.Tensor], device: torch.device) -> None:
    """Two documents, grouped heads."""
    q, k, v = (_values(device, 48, heads, 64) for heads in (4, 2, 2))
    boundaries = torch.tensor([0, 20, 48], dtype=torch.int32, device=device)
    _check(attend(q, k, v, boundaries, boundaries, 28, 0.125, None), q)


def _causal_conv1d(device: torch.device) -> None:
    from sft_hydra.kernels.ssd_fused import fused_conv_silu

    x, weight, bias = _values(device, 48, 64), _values(device, 64, 4), _values(device, 64)
    _check(fused_conv_silu(x, weight, bias, _documents(device)), x)


def _mamba_ssm(device: torch.device) -> None:
    from sft_hydra.kernels.ssd_fused import fused_ssd

    x, b, c = _values(device, 48, 4, 64), _values(device, 48, 2, 64), _values(device, 48, 2, 64)
    dt, decay, skip = _values(device, 48, 4).float().abs(), -torch.ones(4, device=device), torch.ones(4, device=device)
    _check(fused_ssd(x, dt, decay, b, c, skip, _documents(device), 16), x)


_EXAMPLES: dict[str, Callable[[torch.device], None]] = {
    FLASH_ATTN: _flash_attn,
    VARLEN_ATTN: _varlen_attn,
    CAUSAL_CONV1D: _causal_conv1d,
    MAMBA_SSM: _mamba_ssm,
}


def _values(device: torch.device, *shape: int) -> torch.Tensor:
    """bf16 values in [-1, 1], without the random generator, on whose state a run's results depend."""
    count = torch.Size(shape).numel()
    return torch.arange(count, device=device).sin().reshape(shape).bfloat16().requires_grad_()


def _documents(device: torch.device) -> torch.Tensor:
    """Index (48,) of the document of each token."""
    return (torch.arange(48, device=device) >= 20).to(torch.int32)


def _check(out: torch.Tensor, x: torch.Tensor) -> None:
    """RuntimeError if an output has not the shape of its input `x`, or if it or the gradient is not finite."""
    out.float().sum().backward()
    if out.shape != x.shape or x.grad is None or not bool(out.isfinite().all() & x.grad.isfinite().all()):
        raise RuntimeError("it returns values that are not finite, or of another shape, for a small example")
