"""How fast data preparation is: rows per second of `prepare` from JSONL to Parquet with one worker, against merely encoding
the same rendered text with the `tokenizers` library (`encode_batch`, one thread). Side by side, alternating, median.

    python benchmarks/data_prep.py CHAT_FOLDER TOKENIZER_FOLDER [--repeat 3] [--seq-length 16384] [--workers 1,2]

Writes benchmarks/results/data_prep.json. Times are wall clock; `cpu` is the processor time of the same work, which says
more on a machine that does other things too.
"""

import argparse
import json
import os
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
from sft_hydra.data.tokenizer import load_tokenizer
from sft_hydra.errors import RowError

RESULTS = Path(__file__).parent / "results" / "data_prep.json"


def main() -> None:
    arguments = _arguments()
    files = sorted(Path(arguments.chat).glob("*.jsonl"))
    texts = rendered_texts(make_cfg(arguments, files, 1))
    reference = load_tokenizer(make_cfg(arguments, files, 1)).backend
    baseline: list[dict[str, float]] = []
    ours: dict[int, list[dict[str, float]]] = {workers: [] for workers in arguments.workers}
    rows = tokens = 0
    for _ in range(arguments.repeat):
        baseline.append(timed(lambda: reference.encode_batch(texts, add_special_tokens=False)))
        for workers in arguments.workers:
            with tempfile.TemporaryDirectory() as folder:
                cfg = make_cfg(arguments, files, workers)
                cfg.output_dir = folder
                ours[workers].append(timed(lambda cfg=cfg: prepare(cfg)))
                meta = prepare(cfg).metadata
                rows, tokens = meta["rows"], meta["tokens"]
    result = {
        "rows": rows,
        "tokens": tokens,
        "megabytes_of_text": round(sum(map(len, texts)) / 1e6, 1),
        "encode_batch": median(baseline, rows, tokens),
        "prepare": {str(workers): median(times, rows, tokens) for workers, times in ours.items()},
    }
    for figures in result["prepare"].values():
        figures["times_encode_batch"] = round(result["encode_batch"]["seconds"] / figures["seconds"], 2)
        figures["times_encode_batch_cpu"] = round(result["encode_batch"]["cpu"] / figures["cpu"], 2)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat")
    parser.add_argument("tokenizer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seq-length", type=int, default=16384)
    parser.add_argument("--workers", type=lambda text: [int(part) for part in text.split(",")], default=[1])
    return parser.parse_args()


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
