"""How fast data preparation is, in one run that writes benchmarks/results/data_prep.json:

1. rows per second of `prepare` from JSONL to Parquet, against merely encoding the same rendered text with the `tokenizers`
   library (`encode_batch`, one thread); side by side, alternating, median;
2. what a token of a conversation of eight turns costs, against one of a single turn;
3. packing: a million lengths, and how full rows of 4096 are with GSM8K and identity chats.

    python benchmarks/data_prep.py CHAT_FOLDER TOKENIZER_FOLDER [--copies 1,5] [--workers 1,2] [--repeat 3]

`--copies`: how often every file is put behind itself, because reading a tokenizer takes a second or two whatever the data.
Every preparation of part 1 starts from nothing: both libraries read the tokenizer again. Times are wall clock; `cpu` is the
processor time of the same work, which says more on a machine that does other things.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np

from sft_hydra.config.schema import ModelConfig, SftConfig
from sft_hydra.config.schema_data import Packing, SourceConfig
from sft_hydra.data.conversation import to_conversation
from sft_hydra.data.pack import pack
from sft_hydra.data.prepare import prepare
from sft_hydra.data.render import Renderer
from sft_hydra.data.sources import Bad, Source, files_of, read_rows
from sft_hydra.data.tokenize import forget_tokenizers
from sft_hydra.data.tokenizer import load_tokenizer
from sft_hydra.errors import RowError

RESULTS = Path(__file__).parent / "results" / "data_prep.json"
LIBRARIES = ("fastokens", "tokenizers", "orjson", "jinja2", "pyarrow", "numpy")
TURNS = 8
CAPACITY = 4096
MIX = ("gsm8k_train", "nanochat_identity")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()}
        results["speed"] = {f"copies={copies}": speed(arguments, copies, folder) for copies in arguments.copies}
        results["turns"] = turns(arguments, folder)
        results["packing"] = packing(arguments, folder)
        results["load_after"] = os.getloadavg()
        results["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(models)) or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "date": datetime.now().isoformat(timespec="minutes"),
    }


def speed(arguments: argparse.Namespace, copies: int, folder: Path) -> dict[str, Any]:
    inputs = folder / f"inputs-{copies}"
    inputs.mkdir()
    files = []
    for file in sorted(Path(arguments.chat).glob("*.jsonl")):
        files.append(inputs / file.name)
        files[-1].write_bytes(file.read_bytes() * copies)
    found = compare(arguments, files, folder)
    shutil.rmtree(inputs)
    return found


def compare(arguments: argparse.Namespace, files: list[Path], folder: Path) -> dict[str, Any]:
    cfg = make_cfg(arguments, files, 1)
    texts = rendered_texts(cfg)
    reference = load_tokenizer(cfg).backend
    baseline: list[dict[str, float]] = []
    ours: dict[int, list[dict[str, float]]] = {workers: [] for workers in arguments.workers}
    meta: dict[str, Any] = {}
    for _ in range(arguments.repeat):
        baseline.append(timed(lambda: reference.encode_batch(texts, add_special_tokens=False)))
        for workers in arguments.workers:
            forget_tokenizers()
            times, meta = prepared(make_cfg(arguments, files, workers), folder)
            ours[workers].append(times)
    rows, tokens = meta["rows"], meta["tokens"]
    encoding = median(baseline, rows, tokens)
    preparing = {str(workers): median(times, rows, tokens) for workers, times in ours.items()}
    for figures in preparing.values():
        figures["times_encode_batch"] = round(encoding["seconds"] / figures["seconds"], 2)
        figures["times_encode_batch_cpu"] = round(encoding["cpu"] / figures["cpu"], 2)
    return {
        "rows": rows,
        "tokens": tokens,
        "megabytes_of_text": round(sum(map(len, texts)) / 1e6, 1),
        "encode_batch": encoding,
        "prepare": preparing,
    }


def turns(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The same questions and answers, one and eight in a conversation."""
    lines = (Path(arguments.chat) / "gsm8k_train.jsonl").read_text().splitlines()
    talks = [json.loads(line)["messages"][-2:] for line in lines]
    parts = [talks[start : start + TURNS] for start in range(0, len(talks), TURNS)]
    joined = [[message for talk in part for message in talk] for part in parts]
    found: dict[str, Any] = {}
    for name, conversations in (("single", talks), ("eight", joined)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations) * TURNS)
        runs = [prepared(make_cfg(arguments, [path], 1), folder) for _ in range(arguments.repeat)]
        figures = median([times for times, _ in runs], runs[0][1]["rows"], runs[0][1]["tokens"])
        found[name] = {**figures, "tokens": runs[0][1]["tokens"]}
    per_token = {name: found[name]["cpu"] / found[name]["tokens"] for name in found}
    return {**found, "eight_per_single_token": round(per_token["eight"] / per_token["single"], 2)}


def packing(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.8, 1_000_000).astype(np.int64), 1, CAPACITY)
    bins: list[list[int]] = []
    times = timed(lambda: bins.extend(pack(lengths, CAPACITY, Packing.best_fit)))
    return {
        "million_lengths": {**rounded(times), "efficiency": round(int(lengths.sum()) / (len(bins) * CAPACITY), 5)},
        "gsm8k_and_identity": mix(arguments, folder),
    }


def mix(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows of 4096: as prepared, every source in rows of its own, and all conversations together. The row that is left
    at the end says nothing about packing, so `but_the_last` leaves out the emptiest."""
    cfg = make_cfg(arguments, [Path(arguments.chat) / f"{name}.jsonl" for name in MIX], 1)
    cfg.seq_length, cfg.output_dir = CAPACITY, str(folder / "mix")
    packed = prepare(cfg)
    rows = [packed.row("train", index) for index in range(packed.num_rows("train"))]
    lengths = np.concatenate([np.diff([*row.seq_start_id, len(row.input_ids)]) for row in rows])
    together = sorted(int(lengths[members].sum()) for members in pack(lengths, CAPACITY, Packing.best_fit))
    return {
        "prepared": round(packed.metadata["efficiency"], 5),
        "together": round(sum(together) / (len(together) * CAPACITY), 5),
        "together_but_the_last": round(sum(together[1:]) / ((len(together) - 1) * CAPACITY), 5),
        "rows": {"prepared": len(rows), "together": len(together), "at_least": -(-int(lengths.sum()) // CAPACITY)},
    }


def prepared(cfg: SftConfig, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Times and metadata of a preparation, whose result is removed."""
    cfg.output_dir = str(folder / "out")
    times = timed(lambda: prepare(cfg))
    metadata = prepare(cfg).metadata
    shutil.rmtree(cfg.output_dir)
    return times, metadata


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat")
    parser.add_argument("tokenizer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seq-length", type=int, default=16384)
    parser.add_argument("--workers", type=numbers, default=[1])
    parser.add_argument("--copies", type=numbers, default=[1])
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def make_cfg(arguments: argparse.Namespace, files: list[Path], workers: int) -> SftConfig:
    cfg = SftConfig(model=ModelConfig(name="none"), seq_length=arguments.seq_length)
    cfg.tokenizer.path = arguments.tokenizer
    cfg.data.num_workers = workers
    cfg.data.sources = {file.stem: SourceConfig(path=str(file)) for file in files}
    return cfg


def rendered_texts(cfg: SftConfig) -> list[str]:
    """The text of every sequence that the preparation makes."""
    renderer = Renderer.of(load_tokenizer(cfg), cfg.data)
    texts = []
    for name, config in cfg.data.sources.items():
        source = Source(name, config)
        for file in files_of(source):
            for number, row in read_rows(file, source, 0, None):
                try:
                    if not isinstance(row, Bad):
                        found = renderer.sequences(to_conversation(row, config, name, f"{file.path}:{number + 1}"))
                        texts += [sequence.text for sequence in found]
                except RowError:
                    continue
    return texts


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), os.times()
    work()
    spent = os.times()
    processor = sum(
        getattr(spent, key) - getattr(cpu, key) for key in ("user", "system", "children_user", "children_system")
    )
    return {"seconds": time.perf_counter() - wall, "cpu": processor}


def median(times: list[dict[str, float]], rows: int, tokens: int) -> dict[str, float]:
    found = {key: statistics.median(entry[key] for entry in times) for key in ("seconds", "cpu")}
    speeds = {"rows_per_second": rows / found["seconds"], "tokens_per_second": tokens / found["seconds"]}
    return {**rounded(found), **{key: round(value) for key, value in speeds.items()}}


def rounded(times: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 2) for key, value in times.items()}


if __name__ == "__main__":
    main()
