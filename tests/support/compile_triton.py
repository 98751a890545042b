"""A program: compiles every Triton kernel for a device of compute capability 9.0 (H100), without one.

    python compile_triton.py

Launches end in the compiler, with the types of what they are launched with. Prints a JSON list of the kernels compiled.
"""

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel
from triton.runtime.jit import JITFunction

from sft_hydra.kernels import fused_choice

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}


def main() -> None:
    compiled: list[str] = []

    def compile_launch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {"num_warps": kwargs.pop("num_warps", 4)}
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        constants = {p.name for p in self.params if p.is_constexpr}
        signature = {name: "constexpr" if name in constants else _type(value) for name, value in values.items()}
        source = ASTSource(self, signature, {name: values[name] for name in constants})
        assert compile_kernel(source, target=TARGET, options=options).asm["cubin"]
        compiled.append(self.fn.__name__)

    JITFunction.run = compile_launch
    fused_choice.DEVICE = "cpu"  # their implementation for the CPU launches them like that for CUDA
    for operation, reason in fused_choice.try_fused(torch.device("cpu")).items():
        assert reason is None, (operation, reason)
    print(json.dumps(compiled))


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


if __name__ == "__main__":
    main()
