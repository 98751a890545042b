"""Checks of a packed set against a run (`check_fits`, `is_stale`), and of the rejected rows of a preparation
(`check_rejects`)."""

import json
from pathlib import Path

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.plan import Plan, read_request
from sft_hydra.data_prep.sources import files_of, sources_of
from sft_hydra.data_prep.token_store import read_token_store
from sft_hydra.errors import ConfigError, DataError, SeqLengthMismatchError, TokenizerMismatchError
from sft_hydra.schema.config import SftConfig

WAYS_OUT = {  # by reason, where every row of a source is rejected
    "malformed": 'Each line must be one JSON object in UTF-8, like {"messages": [...]}; a JSON array is read from a .json file',
    "no_messages": (
        "For other column names set data.default.messages_key=<column>, or "
        "data.default.input_key=<question> data.default.output_key=<answer>"
    ),
    "overlong": "Raise seq_length to keep them whole, or set data.overlong=truncate to keep their beginnings",
}


def check_fits(packed: PackedSet, cfg: SftConfig, tokenizer: ChatTokenizer) -> None:
    """SeqLengthMismatchError or TokenizerMismatchError unless this run can train on `packed`."""
    size = packed.metadata["pack_size"]
    if size is not None and size != cfg.seq_length:
        raise SeqLengthMismatchError(
            f"{packed.folder}: packed for seq_length={size}, this run has seq_length={cfg.seq_length}. "
            f"Set seq_length={size}, or repack into another data.packed_dir."
        )
    if packed.metadata.get("foreign"):
        _check_foreign(packed, cfg, tokenizer)
    elif packed.metadata["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
        raise TokenizerMismatchError(
            f"tokenizer_mismatch: {packed.folder} was packed with the tokenizer {packed.metadata['tokenizer']['path']} and "
            f"its template; this run has {tokenizer.folder}. Use that tokenizer.path and tokenizer.chat_template, or "
            "repack."
        )


def _check_foreign(packed: PackedSet, cfg: SftConfig, tokenizer: ChatTokenizer) -> None:
    """Check what the rows of another tool's set show: their lengths and ids."""
    longest, highest = packed.metadata["longest_row"], packed.metadata["highest_id"]
    if longest > cfg.seq_length:
        raise SeqLengthMismatchError(
            f"{packed.folder}: packed sequences of {longest:,} tokens do not fit seq_length={cfg.seq_length}. Set seq_length to the "
            "length that they were packed for"
        )
    if highest >= tokenizer.vocab_size:
        made = packed.metadata["tokenizer"]["path"]
        raise TokenizerMismatchError(
            f"tokenizer_mismatch: {packed.folder} has token id {highest:,}, the tokenizer in {tokenizer.folder} only "
            f"{tokenizer.vocab_size:,} ids. Set tokenizer.path to the tokenizer that these shards were made with"
            + (f" ({made})" if made else "")
        )


def is_stale(packed: PackedSet, cfg: SftConfig, tokenizer: ChatTokenizer) -> bool:
    """True if the set was prepared from this config's inputs, and these or the options have changed since."""
    if packed.metadata.get("foreign"):
        return False
    recorded = {entry["path"] for entry in packed.metadata["inputs"]}
    try:
        wanted = {file.path for source in sources_of(cfg.data) for file in files_of(source)}
    except (ConfigError, DataError):  # the inputs are not here: the packed set is used without them
        return False
    return bool(recorded & wanted) and read_request(cfg, tokenizer).key != packed.metadata["content_key"]


def check_rejects(plan: Plan, spools: list[Path]) -> None:
    """DataError if more rows were rejected than `data.max_bad_rows` allows, or if a source has none left."""
    counts = [read_token_store(spool).counts for spool in spools]
    problems = []
    for index, source in enumerate(plan.sources):
        own = [count for shard, count in zip(plan.shards, counts, strict=True) if shard.source == index]
        rows = sum(count.get("rows", 0) for count in own)
        reasons: dict[str, int] = {}
        for count in own:
            for name, number in count.items():
                if name.startswith("rejected/"):
                    reasons[name.removeprefix("rejected/")] = reasons.get(name.removeprefix("rejected/"), 0) + number
        summary = ", ".join(
            f"{number} {reason}" for reason, number in sorted(reasons.items(), key=lambda item: -item[1])
        )
        if rows == 0:
            problems.append(f"source {source.name}: {source.config.path} has no rows")
        elif sum(reasons.values()) == rows:
            problems.append(
                f"source {source.name}: all {rows} rows were rejected ({summary}). {_first_rejects(plan, spools, index)}"
                + "".join(f". {WAYS_OUT[reason]}" for reason in reasons if reason in WAYS_OUT)
            )
    limit = plan.data.max_bad_rows
    total = sum(number for count in counts for name, number in count.items() if name.startswith("rejected/"))
    if limit is not None and total > limit:
        problems.append(
            f"{total} rows were rejected, more than data.max_bad_rows={limit}. {_first_rejects(plan, spools, None)}"
        )
    if problems:
        raise DataError(*problems)


def _first_rejects(plan: Plan, spools: list[Path], source: int | None) -> str:
    shown: list[str] = []
    for shard, spool in zip(plan.shards, spools, strict=True):
        if source in (None, shard.source):
            with open(spool / "rejects.jsonl", encoding="utf-8") as stream:
                for line in stream:
                    entry = json.loads(line)
                    shown.append(f"{entry['origin']}: {entry['reason']} ({entry['detail'][:200]})")
                    if len(shown) == 3:
                        return "First of them: " + "; ".join(shown)
    return "First of them: " + "; ".join(shown)
