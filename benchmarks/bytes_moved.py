"""Bytes that operations read and write and kernels that they launch, of the second micro-batch of a step, counted without a
GPU.

    python benchmarks/bytes_moved.py [--case qwen3_0_6b_full] [--operators]

Models of true sizes run forward and backward on fake CUDA tensors in bf16, which have shapes and no values: nothing is computed
and nothing timed. Forward and backward figures are of a layer (the mean over layers), the head's are of the whole micro-batch;
60 % of the tokens are trained. Needs g++ and a torch without CUDA. Writes benchmarks/results/bytes_moved.json.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.fake_cuda import build, load

with tempfile.TemporaryDirectory() as folder:
    load(build(Path(folder)))

import torch
from bytes_counted import BytesMoved, Moved
from support.packed import make_row
from torch._subclasses import FakeTensorMode
from train_step_cases import Case, cases, make_cfg

from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.models.build import build_model
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import add_adapters
from sft_hydra.models.weight_copies import kept_copies
from sft_hydra.parallel.parallelize import Options, parallelize

# torch without CUDA composes these of smaller operations; with a kernel registered for CUDA they are one, as on a GPU
ONE_KERNEL = ("_fused_rms_norm", "_fused_rms_norm_backward", "silu_backward")
CUDA_KERNELS = torch.library.Library("aten", "IMPL")
for operator in ONE_KERNEL:
    CUDA_KERNELS.impl(operator, lambda *_: None, "CUDA")

RESULTS = Path(__file__).parent / "results" / "bytes_moved.json"
CASES = ("qwen3_0_6b_full", "qwen3_8b_lora", "nano3_cut")
LENGTHS = [1500, 1100, 700, 500, 296]  # conversations of a row of 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="one case; prints without writing a file")
    parser.add_argument("--operators", action="store_true", help="print the operators that move most")
    parser.add_argument("--recompute", default="none", choices=("none", "selective", "full"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "torch": torch.__version__}
    for name in [arguments.case] if arguments.case else CASES:
        moved = count(cases()[name], arguments.recompute)
        result[name] = table(moved, cases()[name])
        if arguments.operators:
            print_operators(name, moved)
    print(json.dumps(result, indent=1))
    if arguments.case is None and arguments.recompute == "none":
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def count(case: Case, recompute: str) -> dict[str, Moved]:
    """What a micro-batch of `case` moves in forward, head and backward."""
    model = make_model(case, recompute)
    row = make_row(LENGTHS, vocab=model.config.vocab_size)
    batch = make_batch([row] * case.micro, "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), kept_copies(model) if recompute == "none" else nullcontext():
        model.to_empty(device="cuda")
        batch = on_device(batch)
        forward_loss(model, batch)[0].backward()
        counter = counted(model, batch)
    return counter.moved


def counted(model: DecoderModel, batch: Batch) -> BytesMoved:
    with BytesMoved() as counter:
        counter.phase = "forward"
        with head_counted(model, counter):
            boundaries = batch.cu_seqlens, batch.max_seqlen
            losses = model(batch.input_ids, batch.position_ids, *boundaries, batch.targets, batch.trained)
        counter.phase = "backward"
        losses[0].backward()
    return counter


def make_model(case: Case, recompute: str) -> DecoderModel:
    peft = make_cfg(case).peft
    model = build_model(case.architecture, "meta", torch.float32 if peft is None else torch.bfloat16)
    if peft is not None:
        add_adapters(model, peft)
    model.rounds_to = torch.bfloat16
    parallelize([model], model.blocks, model.mesh, Options(torch.bfloat16, recompute))
    return model


@contextmanager
def head_counted(model: DecoderModel, counter: BytesMoved) -> Iterator[None]:
    """What `model.losses` does is counted as the head."""
    losses = model.losses

    def counted(*args: Any, **kwargs: Any) -> Any:
        counter.phase = "head"
        return losses(*args, **kwargs)

    model.losses = counted  # type: ignore[method-assign]
    yield
    model.losses = losses  # type: ignore[method-assign]


def on_device(batch: Batch) -> Batch:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    tensors = {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}
    return replace(batch, **{name: torch.empty_like(t, device="cuda") for name, t in tensors.items()})


def table(moved: dict[str, Moved], case: Case) -> dict[str, Any]:
    """Figures of a layer, of the head and of the whole micro-batch."""
    layers = case.architecture["num_hidden_layers"]
    each = {phase: moved[phase].summary() for phase in ("forward", "backward", "head")}
    whole = {key: round(sum(part[key] for part in each.values()), 1) for key in each["head"]}
    for phase in ("forward", "backward"):
        each[phase] = {key: round(n / layers, 3) for key, n in each[phase].items()}
    return {"layers": layers, "layer_forward": each["forward"], "layer_backward": each["backward"]} | {
        "head": each["head"],
        "micro_batch": whole,
    }


def print_operators(name: str, moved: dict[str, Moved], most: int = 16) -> None:
    for phase, of_phase in moved.items():
        print(f"{name}, {phase}: GB, kernels, operator")
        for op, n in of_phase.bytes.most_common(most):
            print(f"  {n / 1e9:8.2f} {of_phase.kernels[op]:6d} {op}")


if __name__ == "__main__":
    main()
