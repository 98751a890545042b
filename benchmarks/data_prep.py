"""How fast data preparation is: rows per second of `prepare` from JSONL to Parquet with one worker, against merely encoding
the same rendered text with the `tokenizers` library (`encode_batch`, one thread). Side by side, alternating, median.

    python benchmarks/data_prep.py CHAT_FOLDER TOKENIZER_FOLDER [--copies 1,5] [--workers 1,2] [--repeat 3]

`--copies`: how often every file is put behind itself, because reading a tokenizer takes a second or two whatever the data.
Every preparation starts from nothing: both libraries read the tokenizer again. Writes benchmarks/results/data_prep.json.
Times are wall clock; `cpu` is the processor time of the same work, which says more on a machine that does other things.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from sft_hydra.config.schema import ModelConfig, SftConfig
from sft_hydra.config.schema_data import SourceConfig
from sft_hydra.data.conversation import to_conversation
from sft_hydra.data.prepare import prepare
from sft_hydra.data.render import Renderer
from sft_hydra.data.sources import Bad, Source, files_of, read_rows
from sft_hydra.data.tokenize import forget_tokenizers
from sft_hydra.data.tokenizer import load_tokenizer
from sft_hydra.errors import RowError

RESULTS = Path(__file__).parent / "results" / "data_prep.json"


def main() -> None:
    arguments = _arguments()
    results = {f"copies={copies}": measure(arguments, copies) for copies in arguments.copies}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(arguments: argparse.Namespace, copies: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for file in sorted(Path(arguments.chat).glob("*.jsonl")):
            files.append(Path(folder) / file.name)
            files[-1].write_bytes(file.read_bytes() * copies)
        return compare(arguments, files, Path(folder))


def compare(arguments: argparse.Namespace, files: list[Path], folder: Path) -> dict[str, Any]:
    cfg = make_cfg(arguments, files, 1)
    texts = rendered_texts(cfg)
    reference = load_tokenizer(cfg).backend
    baseline: list[dict[str, float]] = []
    ours: dict[int, list[dict[str, float]]] = {workers: [] for workers in arguments.workers}
    meta: dict[str, Any] = {}
    for repeat in range(arguments.repeat):
        baseline.append(timed(lambda: reference.encode_batch(texts, add_special_tokens=False)))
        for workers in arguments.workers:
            cfg = make_cfg(arguments, files, workers)
            cfg.output_dir = str(folder / f"{repeat}-{workers}")
            forget_tokenizers()
            ours[workers].append(timed(lambda cfg=cfg: prepare(cfg)))
            meta = prepare(cfg).metadata
            shutil.rmtree(cfg.output_dir)
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
    seconds = statistics.median(entry["seconds"] for entry in times)
    return {
        "seconds": round(seconds, 2),
        "cpu": round(statistics.median(entry["cpu"] for entry in times), 2),
        "rows_per_second": round(rows / seconds),
        "tokens_per_second": round(tokens / seconds),
    }


if __name__ == "__main__":
    main()
