"""How fast a training step is: ours, TRL's SFTTrainer's and the transformers Trainer's, on the same packed real rows with
the same random weights of a true shape. Steps alternate in one process; losses must agree before anything is timed.

    python benchmarks/train_step.py CHAT_FOLDER TOKENIZER_FOLDER --case tiny [--steps 10] [--threads 1] [--compile] [--alone]
    python benchmarks/train_step.py --rows rows.npz --case qwen3_0_6b_full --profile

Cases for a CPU: tiny (vocabulary of Qwen3), tiny_small_vocab. For one GPU: qwen3_0_6b_full, qwen3_8b_lora, nano3_cut.
`--compile` compiles our blocks; `--alone` leaves the peers out. Writes benchmarks/results/train_step_<case>[_compile].json, after
each step what is known by then. `--profile` prints a table of the kernels of one more of our steps. A peer that cannot run is left out with its reason. TRL is a dependency
of this script alone: pip install trl (and liger-kernel, flash-attn on a GPU).

Times are wall clock and, beside them, processor time. Peak memory is taken in a process of its own for each party: of the device on CUDA, resident memory elsewhere.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rows_file import load_rows
from train_step_cases import Case, cases, peak_flops, real_rows, step_flops
from train_step_peers import Ours, Party, make_party

from sft_hydra.kernels.fused_choice import try_fused
from sft_hydra.kernels.library_choice import try_kernels
from sft_hydra.process.allocator import use_expandable_segments
from sft_hydra.records import PackedRow
from sft_hydra.runners.kernel_report import kernels_of

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "liger-kernel", "flash-attn", "mamba-ssm")
WARM_UP = 2
TOLERANCE = 1e-3


class Times(NamedTuple):
    """Of one step."""

    seconds: float
    cpu: float  # seconds of processor time, more reliable on a shared machine


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    use_expandable_segments()
    case, rows = load_case(arguments)
    if case.device == "cuda":
        try_kernels(torch.device("cuda"))
        try_fused(torch.device("cuda"))
    if arguments.memory_of:
        print(json.dumps(memory(arguments.memory_of, case, rows)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(measure(case, rows, arguments), indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat", type=Path, nargs="?")
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("--rows", type=Path, help="rows from benchmarks/rows_file.py, in place of the two folders")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--case", choices=list(cases()), default="tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--data", type=Path, help="a folder in which prepared rows are kept")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.rows or arguments.tokenizer):
        parser.error("give CHAT_FOLDER and TOKENIZER_FOLDER, or --rows")
    return arguments


def load_case(arguments: argparse.Namespace) -> tuple[Case, list[PackedRow]]:
    case = cases()[arguments.case]
    if arguments.compile:
        case = replace(case, options=case.options | {"compile": True})
    if arguments.alone:
        case = replace(case, peers=())
    count = (WARM_UP + arguments.steps + arguments.profile) * case.rows
    if arguments.rows:
        rows, vocab = load_rows(arguments.rows, case.architecture.get("vocab_size"))
        if len(rows) < count:
            raise SystemExit(f"{arguments.rows} has {len(rows)} rows, but --steps {arguments.steps} needs {count}")
        rows = rows[:count]
    else:
        rows, vocab = real_rows(case, arguments.chat, arguments.tokenizer, count, arguments.data)
    case.architecture.setdefault("vocab_size", vocab)
    return case, rows


def measure(case: Case, rows: list[PackedRow], arguments: argparse.Namespace) -> dict[str, Any]:
    """The result, which is also written: after each step, and after each party's memory is known."""
    parties, absent = start_parties(case, rows)
    result = description(case, arguments) | {"not_compared": absent, "kernels": kernels(parties), "parties": {}}
    times: dict[str, list[Times]] = {name: [] for name in parties}
    for step in range(1, arguments.steps + 1):
        for name, party in parties.items():
            times[name].append(timed(party, case))
        trained = rows[WARM_UP * case.rows : (WARM_UP + step) * case.rows]
        result["parties"] = figures(case, trained, times, result["peak_flops"]["value"])
        write(result, arguments)
    if arguments.profile:
        profile(parties["sft_hydra"], case)
    for party in parties.values():
        party.close()
    if case.device == "cuda":
        torch.cuda.empty_cache()  # for the processes that measure memory
    for name, figure in result["parties"].items():
        figure |= memory_in_own_process(name, arguments)
        write(result, arguments)
    return result


def write(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    file = arguments.out / f"train_step_{arguments.case}{'_compile' * arguments.compile}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")


def description(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    peak, known = peak_flops(case.device)
    return {
        "case": arguments.case,
        "compile": arguments.compile,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(case.device, arguments.threads),
        "versions": versions(),
        "rows_per_step": case.rows,
        "rows_per_pass": case.micro,
        "seq_length": case.seq_length,
        "vocab_size": case.architecture["vocab_size"],
        "peak_flops": {"value": peak, "from": known},
        "mfu_is": step_flops.__doc__,
    }


def kernels(parties: dict[str, Party]) -> dict[str, str]:
    ours = parties["sft_hydra"]
    assert isinstance(ours, Ours)
    return kernels_of(ours.model)


def figures(case: Case, rows: list[PackedRow], times: dict[str, list[Times]], peak: float) -> dict[str, Any]:
    """Of each party; the factors compare its middle step with ours."""
    found = {name: describe(case, rows, each, peak) for name, each in times.items()}
    for name, figure in found.items():
        for clock in Times._fields:
            figure[f"times_ours_{clock}"] = round(median(times[name], clock) / median(times["sft_hydra"], clock), 2)
    return found


def profile(party: Party, case: Case) -> None:
    """Print the kernels of one step, those that take longest first."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA] * (case.device == "cuda")]) as profiler:
        party.step()
    order = "self_cuda_time_total" if case.device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60), flush=True)


def start_parties(case: Case, rows: list[PackedRow]) -> tuple[dict[str, Party], dict[str, str]]:
    """All parties after their warm-up, and why the others are not there. A peer must agree with our first loss."""
    parties: dict[str, Party] = {"sft_hydra": make_party("sft_hydra", case, rows)}
    ours = [parties["sft_hydra"].step() for _ in range(WARM_UP)]
    absent: dict[str, str] = {}
    for name in case.peers:
        try:
            party = make_party(name, case, rows)
            theirs = [party.step() for _ in range(WARM_UP)]
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {error}"
            continue
        print(f"losses of steps 1 to {WARM_UP}: sft_hydra {ours}, {name} {theirs}", file=sys.stderr)
        if abs(theirs[0] / ours[0] - 1) > TOLERANCE:
            absent[name] = f"computes another loss: {theirs[0]} instead of {ours[0]}"
            continue
        parties[name] = party
    return parties, absent


def timed(party: Party, case: Case) -> Times:
    """Every party reads its loss at the end of a step, so that nothing of it is still running then."""
    seconds, cpu = time.perf_counter(), time.process_time()
    party.step()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return Times(time.perf_counter() - seconds, time.process_time() - cpu)


def median(times: list[Times], clock: str) -> float:
    return statistics.median(getattr(each, clock) for each in times)


def describe(case: Case, rows: list[PackedRow], times: list[Times], peak: float) -> dict[str, Any]:
    """Figures over the timed steps: middle and spread of single steps, and rates at the middle."""
    seconds = [each.seconds for each in times]
    total = median(times, "seconds") * len(times)
    flops = step_flops(case, rows)
    return {
        "median_seconds": round(median(times, "seconds"), 4),
        "median_cpu_seconds": round(median(times, "cpu"), 4),
        "spread_percent": round(100 * statistics.pstdev(seconds) / statistics.mean(seconds), 1),
        "tokens_per_second": {
            "total": round(len(rows) * case.seq_length / total),
            "real": round(sum(len(row.input_ids) for row in rows) / total),
            "trained": round(sum(int(row.loss_mask.sum()) for row in rows) / total),
        },
        "mfu_percent": {name: round(100 * count / total / peak, 2) for name, count in flops.items()},
    }


def memory_in_own_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """{"peak_memory_gib"}, with why it is not known beside it if the process fails."""
    command = [sys.executable, __file__, "--case", arguments.case, "--steps", "1", "--threads", arguments.threads]
    command += ["--memory-of", name, *["--compile"] * arguments.compile]
    command += ["--rows", arguments.rows] if arguments.rows else [arguments.chat, arguments.tokenizer]
    command += ["--data", arguments.data] if arguments.data else []
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        return {"peak_memory_gib": None, "peak_memory_failed": f"exit code {done.returncode}: {last}"}
    return {"peak_memory_gib": float(done.stdout.splitlines()[-1])}


def memory(name: str, case: Case, rows: list[PackedRow]) -> float:
    """Peak of the steps after the first, in GiB: not that of preparing rows and building the model."""
    party = make_party(name, case, rows)
    party.step()
    forget_peak(case.device)
    for _ in range(WARM_UP):
        party.step()
    return peak_gib(case.device)


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak of resident memory


def peak_gib(device: str) -> float:
    """Of the device since `forget_peak`; resident memory elsewhere."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**20, 2)


def machine(device: str, threads: int) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor()}, {threads} thread(s)"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
