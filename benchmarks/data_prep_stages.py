"""Where the time of data preparation goes, per file and stage, in seconds of processor time of one thread:

    python benchmarks/data_prep_stages.py CHAT_FOLDER TOKENIZER_FOLDER [--copies 1] [--files tau,glaive] [--peers]

Each stage does all rows of a file before the next begins, with the functions that `prepare` uses. `limit` is what no preparation
in this language can do without: parse, encode with fastokens, write. `plain` renders the same rows without the fast path, and
`checks` is the part of `plain` that goes into holding texts to what is served. `times` is how much faster the stages together
are than `encode_batch` of the `tokenizers` library over the same text. `--peers` runs other libraries' preparation of the same
rows (data_prep_peers.py). Results go to benchmarks/results/data_prep_stages.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import orjson
from data_prep import machine

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.data.shard_file import ShardWriter
from sft_hydra.data_prep.content_hash import content_hash, serialize
from sft_hydra.data_prep.control_tokens import ControlTokenEscaper
from sft_hydra.data_prep.conversation import ConversationReader
from sft_hydra.data_prep.files import open_bytes
from sft_hydra.data_prep.filters import Filters
from sft_hydra.data_prep.pack import pack
from sft_hydra.data_prep.pack_shard import gather
from sft_hydra.data_prep.pool import undisturbed
from sft_hydra.data_prep.sources import lines_of
from sft_hydra.data_prep.token_store import TokenStore
from sft_hydra.data_prep.tokenize import SequenceEncoder, TokenBatch
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import FilterConfig, Packing, SourceConfig

RESULTS = Path(__file__).parent / "results" / "data_prep_stages.json"
SEQ_LENGTH = 16384
TOGETHER = 512  # sequences that are encoded at once
SAMPLE = 16  # encode_batch does one of so many texts, in order of length
STAGES = ("read", "parse", "check", "render", "guard", "encode", "mask", "pack", "write")


def main() -> None:
    arguments = _arguments()
    results: dict[str, Any] = {"machine": machine(), "load": os.getloadavg(), "copies": arguments.copies, "files": {}}
    wanted = tuple(arguments.files.split(","))
    for name, found in files_and_stages(arguments.chat, arguments.tokenizer, arguments.copies, arguments.peers, wanted):
        results["files"][name] = found
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def files_and_stages(
    chat: str, tokenizer: str, copies: int, peers: bool = False, wanted: tuple[str, ...] = ("",)
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures of each file whose name holds one of `wanted`, printed as they come."""
    folder = Path(tokenizer)
    ours = ChatTokenizer(folder, (folder / "chat_template.jinja").read_text(encoding="utf-8"))
    for file in sorted(Path(chat).glob("*.jsonl")):
        if not any(name in file.name for name in wanted):
            continue
        with undisturbed():
            found = stages(file, ours, copies)
        if peers:
            from data_prep_peers import peers as others

            found["peers"] = others(file, folder, SEQ_LENGTH)
        print(file.stem, json.dumps(found), flush=True)
        yield file.stem, found


def stages(file: Path, tokenizer: ChatTokenizer, copies: int) -> dict[str, Any]:
    """Seconds of every stage, and what they are compared with."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / file.name
        path.write_bytes(file.read_bytes() * copies)
        with open_bytes(path) as stream:
            lines = clock.time("read", lambda: list(lines_of(stream)))
        rows = clock.time("parse", lambda: [orjson.loads(line) for line in lines])  # type: ignore[arg-type]
        filters, escaper = Filters(FilterConfig()), ControlTokenEscaper(tokenizer)
        reader = ConversationReader(SourceConfig(), "chats")
        talks = clock.time("check", lambda: kept(rows, lambda row: _checked(row, reader, filters)))
        serialized = clock.time("check", lambda: [_hashed(talk) for talk in talks])
        fast, plain = Renderer.of(tokenizer), Renderer.of(tokenizer)
        plain.render_cache = None
        rendered = clock.time("render", lambda: kept(talks, fast.sequences))
        clock.time("plain", lambda: kept(talks, plain.sequences))
        clock.time("unchecked", lambda: kept(talks, plain.unchecked))
        clock.time("guard", lambda: list(map(escaper.is_needed, talks, serialized)))
        sequences = [sequence for found in rendered for sequence in found]
        spool = encode(clock, tokenizer, sequences)
        write(clock, spool, Path(name))
    texts = sorted((sequence.text for sequence in sequences), key=len)[SAMPLE // 2 :: SAMPLE] or [sequences[0].text]
    share = sum(map(len, texts)) / sum(len(sequence.text) for sequence in sequences)
    backend = tokenizer.backend
    clock.time("reference", lambda: backend.encode_batch(texts, add_special_tokens=False))
    encode_batch = clock.spent["reference"] / share
    seconds = {name: clock.spent[name] for name in STAGES}
    whole = sum(seconds.values())
    return {
        "rows": len(rows),
        "tokens": int(spool.lengths.sum()),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "rows_per_second": round(len(rows) / whole),
        "limit": round(sum(seconds[name] for name in ("parse", "encode", "write")), 3),
        "plain": round(clock.spent["plain"], 3),
        "checks": round(clock.spent["plain"] - clock.spent["unchecked"], 3),
        "encode_batch": round(encode_batch, 3),
        "times": round(encode_batch / whole, 2),
    }


class Clock:
    """`spent[name]`: processor time of this thread in what was called under a name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        before = time.thread_time()
        found = work()
        self.spent[name] = self.spent.get(name, 0.0) + time.thread_time() - before
        return found


def kept(items: Iterable[Any], work: Callable[[Any], Any]) -> list[Any]:
    """The results for those items that are not rejected."""
    found = []
    for item in items:
        with suppress(RowError):
            found.append(work(item))
    return found


def _checked(row: Any, reader: ConversationReader, filters: Filters) -> Conversation:
    talk = reader.conversation(row, "")
    filters.check(talk)
    return talk


def _hashed(talk: Conversation) -> bytes | None:
    serialized = serialize(talk)
    content_hash(talk, serialized)
    return serialized


def encode(clock: Clock, tokenizer: ChatTokenizer, sequences: list[RenderedSequence]) -> TokenStore:
    """All sequences as a spool; the mask is what `SequenceEncoder` does beside encoding."""
    encoder = SequenceEncoder(tokenizer, "fastokens", [])
    before = clock.spent.get("encode", 0.0)
    bulk = encoder.bulk.encode
    encoder.bulk.encode = lambda texts: clock.time("encode", lambda: bulk(texts))  # type: ignore[method-assign]
    parts = [sequences[start : start + TOGETHER] for start in range(0, len(sequences), TOGETHER)]
    batches = clock.time("mask", lambda: [encoder.encode(part) for part in parts])
    clock.spent["mask"] -= clock.spent["encode"] - before
    columns = [np.concatenate(part) for part in zip(*map(_arrays, batches), strict=True)]
    row_of = np.arange(len(sequences))
    return TokenStore(columns[0], columns[1], columns[2], row_of, row_of, {})


def _arrays(batch: TokenBatch) -> tuple[Any, Any, Any]:
    return batch.input_ids, batch.loss_mask, batch.lengths


def write(clock: Clock, spool: TokenStore, folder: Path) -> None:
    """Pack the sequences that fit and write them as one shard."""
    fits = np.flatnonzero(spool.lengths <= SEQ_LENGTH)
    starts = np.cumsum(spool.lengths) - spool.lengths

    def columns() -> Any:
        bins = pack(spool.lengths[fits], SEQ_LENGTH, Packing.best_fit)
        order = fits[np.concatenate([np.array(members) for members in bins])]
        return gather(spool, order, np.array([len(members) for members in bins]), starts, 0)

    packed = clock.time("pack", columns)
    writer = ShardWriter(folder / "shard.parquet")
    clock.time("write", lambda: (writer.write(packed), writer.close()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat")
    parser.add_argument("tokenizer")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--files", default="")
    parser.add_argument("--peers", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
