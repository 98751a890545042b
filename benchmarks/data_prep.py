"""How fast data preparation is, in one run that writes benchmarks/results/data_prep.json:

1. rows per second of `prepare` from JSONL to Parquet, against merely encoding the same rendered text with the `tokenizers`
   library (`encode_batch`, one thread); side by side, alternating, median;
2. two workers on two cores, against one on one core and one that has both;
3. what a token of a conversation of eight turns costs, against one of a single turn;
4. packing: a million lengths, and how full rows of 4096 are with GSM8K and identity chats;
5. seconds of every stage for each file, and other libraries' preparation of the same rows (data_prep_stages.py).

    python benchmarks/data_prep.py CHAT_FOLDER TOKENIZER_FOLDER [--copies 1,5] [--scaling 25] [--repeat 3] [--stages 10] [--peers]

`--copies`, `--scaling` for part 2 and `--stages` for part 5 (0: not done): how often every file is put behind itself, because reading a tokenizer takes a second or
two whatever the data. In part 1 one worker may use other cores too: it reads the tokenizer and writes rows beside its work.
Every preparation of parts 1 and 2 runs in a process of its own, which reads the tokenizer again, after it has imported everything. Times are wall clock; `cpu` is the
processor time of the same work, which is more reliable on a shared machine.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.data_prep.conversation import to_conversation
from sft_hydra.data_prep.pack import pack
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.data_prep.sources import MalformedRow, Source, files_of, read_rows
from sft_hydra.data_prep.tokenize import forget_tokenizers
from sft_hydra.errors import RowError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Packing, SourceConfig
from sft_hydra.schema.model import ModelConfig

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
        warm_up(arguments, folder)
        results["speed"] = {f"copies={copies}": speed(arguments, copies, folder) for copies in arguments.copies}
        results["scaling"] = scaling(arguments, folder) if arguments.scaling else None
        results["turns"] = turns(arguments, folder)
        results["packing"] = packing(arguments, folder)
        results["stages"] = stages(arguments) if arguments.stages else None
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


@contextmanager
def multiplied(arguments: argparse.Namespace, copies: int, folder: Path) -> Iterator[list[Path]]:
    """The chat files, each so many times behind itself."""
    inputs = folder / f"inputs-{copies}"
    inputs.mkdir()
    files = []
    for file in sorted(Path(arguments.chat).glob("*.jsonl")):
        files.append(inputs / file.name)
        with open(files[-1], "wb") as stream:
            for _ in range(copies):
                stream.write(file.read_bytes())
    yield files
    shutil.rmtree(inputs)


def speed(arguments: argparse.Namespace, copies: int, folder: Path) -> dict[str, Any]:
    with multiplied(arguments, copies, folder) as files:
        return compare(arguments, files, folder)


def compare(arguments: argparse.Namespace, files: list[Path], folder: Path) -> dict[str, Any]:
    cfg = make_cfg(arguments, files, 1)
    texts = rendered_texts(cfg)
    reference = load_tokenizer(cfg).backend
    baseline: list[dict[str, float]] = []
    ours: list[dict[str, float]] = []
    for _ in range(arguments.repeat):
        baseline.append(timed(lambda: reference.encode_batch(texts, add_special_tokens=False)))
        times, meta = in_own_process(arguments, cfg, folder)
        ours.append(times)
    rows, tokens = meta["rows"], meta["tokens"]
    encoding, preparing = median(baseline, rows, tokens), median(ours, rows, tokens)
    preparing["times_encode_batch"] = round(encoding["seconds"] / preparing["seconds"], 2)
    preparing["times_encode_batch_cpu"] = round(encoding["cpu"] / preparing["cpu"], 2)
    return {
        "rows": rows,
        "tokens": tokens,
        "megabytes_of_text": round(sum(map(len, texts)) / 1e6, 1),
        "encode_batch": encoding,
        "prepare": preparing,
    }


def scaling(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of one worker on one core, one that has two, and two on two; alternating, median."""
    cores = sorted(os.sched_getaffinity(0))
    ways = {"one worker, one core": (1, cores[:1]), "one worker": (1, cores[:2]), "two workers": (2, cores[:2])}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    with multiplied(arguments, arguments.scaling, folder) as files:
        for _ in range(arguments.repeat):
            for name, (workers, own) in ways.items():
                times, meta = in_own_process(arguments, make_cfg(arguments, files, workers), folder, own)
                found[name].append(times)
    medians = {name: median(times, meta["rows"], meta["tokens"]) for name, times in found.items()}
    two = medians["two workers"]["seconds"]
    ratios = {f"two workers, times {name}": round(medians[name]["seconds"] / two, 2) for name in list(ways)[:2]}
    return {"copies": arguments.scaling, "rows": meta["rows"], "tokens": meta["tokens"], **medians, **ratios}


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
    at the end does not measure packing, so `but_the_last` leaves out the emptiest."""
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


def stages(arguments: argparse.Namespace) -> dict[str, Any]:
    from data_prep_stages import files_and_stages

    return dict(files_and_stages(arguments.chat, arguments.tokenizer, arguments.stages, peers=arguments.peers))


def warm_up(arguments: argparse.Namespace, folder: Path) -> None:
    """Prepare a single row, so that no import is timed."""
    path = folder / "row.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n')
    prepared(make_cfg(arguments, [path], 1), folder)
    forget_tokenizers()


def in_own_process(
    arguments: argparse.Namespace, cfg: SftConfig, folder: Path, cores: list[int] | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """`prepared` in a fresh process, as a user's command is; `cores`: those that it may use."""
    cores = cores or sorted(os.sched_getaffinity(0))
    with ProcessPoolExecutor(1, get_context("spawn"), os.sched_setaffinity, (0, cores)) as pool:
        pool.submit(warm_up, arguments, folder).result()
        return pool.submit(prepared, cfg, folder).result()


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
    parser.add_argument("--scaling", type=int, default=0)
    parser.add_argument("--copies", type=numbers, default=[1])
    parser.add_argument("--stages", type=int, default=0)
    parser.add_argument("--peers", action="store_true")
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
                    if not isinstance(row, MalformedRow):
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
