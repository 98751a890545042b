"""A program: forward and backward passes of models on fake CUDA tensors, which have shapes and dtypes and no values.

    python on_fake_cuda.py LIBRARY

LIBRARY is fake_cuda.cpp, compiled. Prints a JSON list, an item for each run: what ran, how often each operator was called, and dtypes.
What asks the device for a value (and would wait for it) ends the program: a fake tensor has none to give.
"""

import ctypes
import dataclasses
import json
import os
import sys
from collections import Counter
from typing import Any

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])  # before torch looks for devices

import torch
from support.packed import ARCHITECTURES, make_row
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.models.build import build_model
from sft_hydra.models.lora import add_adapters
from sft_hydra.parallel.parallelize import Options, parallelize
from sft_hydra.schema.peft import LoraConfig

SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}  # in multiples of what kernels take
FAMILIES = ("qwen3", "mistral_window", "qwen3_moe", "nano", "super")
WAYS = (("none", False), ("none", True), ("selective", False), ("full", False))  # of recompute; with LoRA


class Called(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[op.overloadpacket.__name__] += 1
        return op(*args, **(kwargs or {}))


def run(family: str, kind: str, lora: bool) -> dict[str, Any]:
    model = build_model(ARCHITECTURES[family] | SIZES, "meta", torch.bfloat16 if lora else torch.float32)
    if lora:
        add_adapters(model, LoraConfig(dim=8, match_all_linear=True))
    model.rounds_to = torch.bfloat16
    parallelize([model], model.blocks, model.mesh, Options(torch.bfloat16, kind))
    batch = make_batch([make_row([11, 30, 23])], "cpu")
    seen: set[torch.dtype] = set()
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.update((inputs[0].dtype, output.dtype)))
    with FakeTensorMode(allow_non_fake_inputs=True), Called() as called:
        model.to_empty(device="cuda")
        forward_loss(model, on_device(batch))[0].backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "run": [family, kind, lora],
        "called": called.counts,
        "hidden": sorted(map(str, seen)),
        "gradients": sorted({str(p.grad.dtype) for p in trained if p.grad is not None}),
        "without_gradient": sum(p.grad is None for p in trained),
    }


def on_device(batch: Batch) -> Batch:
    tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    tensors = {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}
    return dataclasses.replace(batch, **{name: torch.empty_like(t, device="cuda") for name, t in tensors.items()})


if __name__ == "__main__":
    print(json.dumps([run(family, kind, lora) for family in FAMILIES for kind, lora in WAYS]), flush=True)
    os._exit(0)  # torch's thread of the device that is none may abort the process while it ends
