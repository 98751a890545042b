"""The plan of a data preparation: sources, files, row ranges of every shard, and the content key.

Invariant: the plan depends on the config and the bytes of the inputs, not on workers, machines or time. The key covers
everything that can change a token; weights, epochs and order are excluded, because they only select packed sequences.

Owner of: the content key of a packed set.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from enum import Enum
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from sft_hydra.chat.tokenizer import AddedToken, ChatTokenizer
from sft_hydra.data.shards import FORMAT_VERSION
from sft_hydra.data_prep.blend import check_weights
from sft_hydra.data_prep.contents import ChangedError
from sft_hydra.data_prep.files import InputFile, check_kind, is_packed
from sft_hydra.data_prep.fingerprint import InputFingerprint, count_rows, fingerprint_inputs, line_offsets
from sft_hydra.data_prep.raw_text import FORMAT, end_token
from sft_hydra.data_prep.sources import MalformedRow, Source, listing_of, read_rows, sources_of
from sft_hydra.errors import ConfigError
from sft_hydra.paths import data_root
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import DataConfig

ROWS_ONLY = ("weight", "epochs")  # of a source: they select packed sequences
READ_ALREADY = ("path", "prompt_file", "system_prompt_file")  # their contents are in the key
RENDERING = 3  # version of the rules by which rows are read and rendered; a change repacks
NOT_IN_KEY = {
    *("name", "path", "valid_path", "blend", "sources", "default", "packed_dir", "trust_foreign", "prepare", "force"),
    *("num_workers", "num_parts", "part", "max_bad_rows", "order"),
}
MADE = ("hub", "demo", "builtin")  # kinds of input without a size in bytes
SHARD_BYTES = 32 << 20
BYTES_PER_MADE_ROW = 1000
ROWS_PER_SHARD = 50_000  # for kinds of input without a size in bytes


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows first..stop of one file. `offset`: byte where row `first` starts, 0 if unknown. `bytes`: their estimated size,
    decompressed; for generated rows a constant per row."""

    file: InputFile
    first: int
    stop: int
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The unit of work: row ranges of one source. `number` names its files and is its position in the set."""

    number: int
    source: int
    ranges: tuple[RowRange, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(part.stop - part.first for part in self.ranges)

    @property
    def bytes(self) -> int:
        """Estimated size of the rows, decompressed."""
        return sum(part.bytes for part in self.ranges)


@dataclass(slots=True)
class Plan:
    """Everything that a worker process needs; it is pickled to the worker processes."""

    key: str
    sources: list[Source]
    shards: list[ShardPlan]
    data: DataConfig
    seq_length: int
    seed: int
    tokenizer_folder: Path
    tokenizer_file: Path
    tokenizer_identity: tuple[str, str]
    template: str | None
    named_templates: dict[str, str]
    template_kwargs: dict[str, Any]
    added: list[AddedToken]
    now: str  # ISO time that templates get as the current time
    inputs: list[dict[str, Any]]  # per file: source, path, identity
    judge_cache: Path
    not_read: list[dict[str, str]]

    @property
    def total_rows(self) -> int:
        """Number of rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def by_size(self) -> list[ShardPlan]:
        """The shards, largest first."""
        return sorted(self.shards, key=lambda shard: -shard.bytes)


def check_splits(data: DataConfig) -> None:
    """ConfigError unless the ratios of data.split are non-negative, sum to 1 and leave a train split."""
    ratios = [data.split.train, data.split.valid, data.split.test]
    if min(ratios) < 0 or abs(sum(ratios) - 1) > 1e-6 or data.split.train == 0:
        raise ConfigError(
            f"data.split: train={ratios[0]}, valid={ratios[1]}, test={ratios[2]} must be 0 or more, train above 0, "
            f"and add up to 1 (they add up to {sum(ratios):g})"
        )


@dataclass(frozen=True, slots=True)
class Request:
    """The packed set that a config describes: its content key, the sources with their files, and a record of every input."""

    key: str
    sources: list[Source]
    files: list[list[InputFile]]
    inputs: list[dict[str, Any]]
    surveys: list[InputFingerprint]  # in the order of `inputs`
    not_read: list[dict[str, str]]  # by source: files of its folder -> reason


def read_request(cfg: SftConfig, tokenizer: ChatTokenizer) -> Request:
    """The request of a config. Reads all input bytes once to compute their checksums. ConfigError for invalid sources, weights
    or splits, DataError if an input cannot be read."""
    check_splits(cfg.data)
    sources = sources_of(cfg.data)
    check_weights(sources)
    for source in sources:
        if source.config.format == FORMAT:
            end_token(tokenizer, source.config, source.name)
    listings = [listing_of(source) for source in sources]
    files = [listing.files for listing in listings]
    pairs = [(file, source) for source, listed in zip(sources, files, strict=True) for file in listed]
    surveys = fingerprint_inputs(pairs)
    seen_again = iter(surveys)
    files = [[_known(file, next(seen_again)) for file in listed] for listed in files]
    inputs = [
        {"source": source.name, "path": file.path, "identity": seen.identity}
        for (file, source), seen in zip(pairs, surveys, strict=True)
    ]
    content = {
        "format": FORMAT_VERSION,
        "rendering": RENDERING,
        "tokenizer": tokenizer.fingerprint,
        "special_tokens": tokenizer.special_tokens,
        "template_kwargs": tokenizer.template_kwargs,
        "seq_length": cfg.seq_length,
        "seed": cfg.seed,
        "data": {key: value for key, value in asdict(cfg.data).items() if key not in NOT_IN_KEY},
        "sources": [_options_of(source) for source in sources],
        "inputs": [{"source": entry["source"], "identity": entry["identity"]} for entry in inputs],
    }
    text = json.dumps(content, sort_keys=True, default=_plain)
    return Request(
        hashlib.sha256(text.encode()).hexdigest()[:16],
        sources,
        files,
        inputs,
        surveys,
        [listing.not_read for listing in listings],
    )


def check_unchanged(request: Request, tokenizer: ChatTokenizer) -> None:
    """ChangedError if an input or the tokenizer changed since the content key was computed."""
    for file in (file for listed in request.files for file in listed):
        if file.contents is not None:
            file.contents.check(file.path)
    check_tokenizer(tokenizer, tokenizer.identity)


def check_tokenizer(tokenizer: ChatTokenizer, identity: tuple[str, str]) -> None:
    """ChangedError unless the tokenizer on disk has this identity."""
    on_disk = ChatTokenizer(tokenizer.folder, tokenizer.template, tokenizer.template_kwargs, named=tokenizer.named)
    if on_disk.identity != identity:
        raise ChangedError(str(tokenizer.folder), "the tokenizer differs")


def _known(file: InputFile, seen: InputFingerprint) -> InputFile:
    """The input with the checksums of `seen`, which are verified from now on when it is read."""
    if file.kind == "hub":
        return replace(file, fingerprint=seen.identity)
    known = replace(file, contents=seen.contents)
    check_kind(known)
    return known


def options_of_set(cfg: SftConfig) -> str:
    """The options of a config that its packed set depends on, without the contents of files, as JSON for comparison."""
    data = {key: value for key, value in asdict(cfg.data).items() if key not in NOT_IN_KEY}
    inputs = [cfg.data.path, cfg.data.valid_path, cfg.data.blend, asdict(cfg.data)["sources"], asdict(cfg.data.default)]
    tokenizer = [asdict(cfg.tokenizer), None if cfg.tokenizer.path else cfg.model.path]
    return json.dumps([data, inputs, tokenizer, cfg.seq_length, cfg.seed], sort_keys=True, default=_plain)


def make_plan(cfg: SftConfig, request: Request, tokenizer: ChatTokenizer, now: str) -> Plan:
    """The plan of a request. `now`: ISO time for templates. Counts the rows of all inputs; DataError if one cannot be read."""
    shards: list[ShardPlan] = []
    surveys = iter(request.surveys)
    for index, (source, listed) in enumerate(zip(request.sources, request.files, strict=True)):
        for ranges in _shard_ranges(source, listed, [next(surveys) for _ in listed], cfg.data):
            shards.append(ShardPlan(len(shards), index, ranges))
    return Plan(
        key=request.key,
        sources=request.sources,
        shards=shards,
        data=cfg.data,
        seq_length=cfg.seq_length,
        seed=cfg.seed,
        tokenizer_folder=tokenizer.folder,
        tokenizer_file=tokenizer.file,
        tokenizer_identity=tokenizer.identity,
        template=tokenizer.template,
        named_templates=tokenizer.named,
        template_kwargs=tokenizer.template_kwargs,
        added=tokenizer.added,
        now=now,
        inputs=request.inputs,
        judge_cache=_judge_cache(cfg),
        not_read=request.not_read,
    )


def _judge_cache(cfg: SftConfig) -> Path:
    cache = cfg.data.filters.judge.cache
    return Path(cache) if cache else data_root(cfg.output_dir) / "judge.jsonl"


def _options_of(source: Source) -> dict[str, Any]:
    options = {key: value for key, value in asdict(source.config).items() if key not in (*ROWS_ONLY, *READ_ALREADY)}
    return {"name": source.name, "only": source.only, **options}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value)


def _shard_ranges(
    source: Source, files: list[InputFile], surveys: list[InputFingerprint], data: DataConfig
) -> list[tuple[RowRange, ...]]:
    """The source's rows split into `data.num_shards` parts of equal row counts (null: about SHARD_BYTES of input each)."""
    found = [count_rows(file, source, seen) for file, seen in zip(files, surveys, strict=True)]
    counts = _limit(source, files, found, data.sample)
    total = sum(counts)
    wanted = data.num_shards or max(sum(map(_size, files)) // SHARD_BYTES, 1)
    if data.num_shards is None and files[0].kind in MADE:
        wanted = max(total // ROWS_PER_SHARD, 1)
    wanted = min(wanted, max(total, 1))
    edges = [round(total * part / wanted) for part in range(wanted + 1)]
    parts: list[list[RowRange]] = [[] for _ in range(wanted)]
    start = 0
    for file, count, rows, seen in zip(files, counts, found, surveys, strict=True):
        per_row = BYTES_PER_MADE_ROW if file.kind in MADE else _size(file) / max(rows, 1)
        cuts = [
            (part, max(a, start) - start, min(b, start + count) - start) for part, (a, b) in enumerate(pairwise(edges))
        ]
        cuts = [(part, first, stop) for part, first, stop in cuts if first < stop]
        offsets = line_offsets(file, [first for _, first, _ in cuts], seen)
        for (part, first, stop), offset in zip(cuts, offsets, strict=True):
            parts[part].append(RowRange(file, first, stop, offset, int(per_row * (stop - first))))
        start += count
    return [tuple(ranges) for ranges in parts]


def _limit(source: Source, files: list[InputFile], counts: list[int], sample: int | None) -> list[int]:
    """Row counts cut to the first `sample` rows; blank lines do not count as rows."""
    if sample is None:
        return counts
    left, limited = sample, []
    for file, count in zip(files, counts, strict=True):
        stop = 0
        for number, _ in read_rows(file, source, 0, count) if left else ():
            stop, left = number + 1, left - 1
            if not left:
                break
        limited.append(stop)
    return limited


def first_rows(request: Request, count: int) -> list[Any]:
    """The parsed rows among the first `count` of every source; malformed ones are skipped."""
    found: list[Any] = []
    for source, listed in zip(request.sources, request.files, strict=True):
        numbered = islice(read_rows(listed[0], source, 0, None), count)
        found += [row for number, row in numbered if number < count and not isinstance(row, MalformedRow)]
    return found


def _size(file: InputFile) -> int:
    """Estimated bytes of an input, decompressed; 0 for kinds without a size in bytes."""
    if file.kind in MADE:
        return 0
    return Path(file.path).stat().st_size * (4 if is_packed(file.path) or file.kind == "parquet" else 1)
