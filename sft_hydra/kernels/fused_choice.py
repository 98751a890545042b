"""Which fused operations are used: Triton kernels on CUDA, plain torch elsewhere and inside torch.compile, which fuses by
itself.

`try_fused` runs each kernel once on small tensors at the start of a run; one that fails is replaced by plain torch.
"""

from importlib import import_module
from importlib.util import find_spec

import torch

OPERATIONS = {  # name: its module in kernels.fused, which has `example(device)`: a small forward and backward pass
    "rms_norm": "norm",
    "rotary": "rotary",
    "activation": "activation",
    "cross_entropy": "cross_entropy",
    "gated_norm": "gated_norm",
    "combine": "combine",
}
DEVICE = "cuda"  # tests set "cpu", for Triton's interpreter
_refused: dict[str, str] = {}  # operation: why plain torch is used for it
if find_spec("triton") is None:
    _refused.update(dict.fromkeys(OPERATIONS, "triton is not installed"))


def is_fused(operation: str, x: torch.Tensor) -> bool:
    """Whether `operation`, a name of OPERATIONS, is a Triton kernel for `x`."""
    takes = x.device.type == DEVICE and x.dtype.itemsize <= 4  # kernels compute in fp32
    return takes and operation not in _refused and not torch.compiler.is_compiling()


def why_not_fused(operation: str) -> str | None:
    """Why `operation` is plain torch on CUDA; None if it is a Triton kernel."""
    return _refused.get(operation)


def try_fused(device: torch.device) -> dict[str, str | None]:
    """Run every kernel on `device` once, and use plain torch in place of those that fail.

    Returns for each name of OPERATIONS None if the kernel is used, or why it is not. Call it once, before the model runs.
    """
    for operation, module in OPERATIONS.items():
        if operation in _refused:
            continue
        if device.type != DEVICE:
            _refused[operation] = f"the device is {device.type}"
            continue
        try:
            import_module(f"sft_hydra.kernels.fused.{module}").example(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # where a failed launch shows
        except Exception as error:  # a kernel fails to compile in as many ways as there are drivers
            _refused[operation] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return {operation: _refused.get(operation) for operation in OPERATIONS}
