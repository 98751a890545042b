"""Whether everything runs at all: versions, the kernels that are tried, and two training steps of each small model.

    python benchmarks/smoke.py [--device cuda] [--compile]

Takes seconds. Exit code 1 if something failed; the rest has run nevertheless.
"""

import argparse
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from train_step import machine, versions
from train_step_cases import TINY, Case, published
from train_step_peers import Ours

from sft_hydra.kernels.fused_choice import try_fused
from sft_hydra.kernels.library_choice import try_kernels
from sft_hydra.process.allocator import use_expandable_segments
from sft_hydra.records import PackedRow
from sft_hydra.runners.kernel_report import kernels_of
from sft_hydra.schema.train import Recompute

VOCAB = 512
LENGTHS = [100, 1, 60, 95]  # of the conversations of each row
DENSE = TINY | {"vocab_size": VOCAB, "num_hidden_layers": 1, "head_dim": 64}
MIXTURE = DENSE | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="compiled blocks alone")
    arguments = parser.parse_args()
    use_expandable_segments()
    print(machine(arguments.device, 1), versions(), flush=True)
    device = torch.device(arguments.device)
    for name, reason in (try_kernels(device) | try_fused(device) if device.type == "cuda" else {}).items():
        print(f"{name}: {reason or 'works'}", flush=True)
    failed = 0
    for name, case in runs(arguments.device, compiled=arguments.compile).items():
        failed += not runs_two_steps(name, case)
    sys.exit(1 if failed else 0)


def runs(device: str, *, compiled: bool) -> dict[str, Case]:
    nano = published("nano3") | {
        "hybrid_override_pattern": "M*E",
        "num_hidden_layers": 3,
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "n_routed_experts": 8,
        "moe_intermediate_size": 128,
        "moe_shared_expert_intermediate_size": 128,
    }
    models = {"qwen3": DENSE, "qwen3_moe": MIXTURE, "nemotron_h": nano}
    plain = {
        name: Case(arch, sum(LENGTHS), 2, 1, device, options={"compile": compiled}) for name, arch in models.items()
    }
    if compiled:
        return plain
    dense = plain["qwen3"]
    return plain | {
        "qwen3 with LoRA": replace(dense, lora=True),
        "qwen3, recompute=selective": replace(dense, options={"recompute": Recompute.selective}),
        "qwen3, recompute=full": replace(dense, options={"recompute": Recompute.full}),
    }


def runs_two_steps(name: str, case: Case) -> bool:
    started = time.monotonic()
    try:
        party = Ours(case, [row(case, seed) for seed in range(2 * case.rows)])
        losses = [party.step() for _ in range(2)]
        ended = f"losses {losses[0]:.4f}, {losses[1]:.4f}"
        kernels = kernels_of(party.model)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"{name}: FAILED", flush=True)
        return False
    print(f"{name}: {ended}, {time.monotonic() - started:.1f} s, {kernels}", flush=True)
    return True


def row(case: Case, seed: int) -> PackedRow:
    rng: Any = np.random.default_rng(seed)
    starts = np.cumsum([0, *LENGTHS[:-1]])
    mask = (rng.random(sum(LENGTHS)) < 0.5).astype(np.uint8)
    mask[starts + np.array(LENGTHS) - 1] = 0
    ids = rng.integers(0, VOCAB, sum(LENGTHS)).astype(np.int32)
    return PackedRow(ids, mask, starts.astype(np.int32), np.zeros(len(LENGTHS), np.int16))


if __name__ == "__main__":
    main()
