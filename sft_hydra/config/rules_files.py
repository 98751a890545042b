"""Rules that read the disk: named files exist, and a packed set fits `seq_length`. Nothing is written."""

import difflib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_hydra.config.adapter import is_adapter_folder
from sft_hydra.config.rules_data import DATA_RUNNERS
from sft_hydra.config.weight_files import INDEX, SINGLE, has_weights, weight_problems
from sft_hydra.errors import ConfigError, ModelError
from sft_hydra.files import exists, read_object
from sft_hydra.planning.architecture import is_hub_id, read_architecture
from sft_hydra.planning.megatron_checkpoint import megatron_problem, torch_dist_folder
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner

DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".gz", ".zst")
DEMO_PARTS = ("train", "drill", "heldout")
BUILTIN = "builtin:"


def data_exists(cfg: SftConfig) -> Iterator[str]:
    """Every data path exists and has a readable file format."""
    if cfg.runner not in DATA_RUNNERS:
        return
    paths = {"data.path": cfg.data.path, "data.valid_path": cfg.data.valid_path}
    paths |= {f"data.sources.{name}.path": source.path for name, source in cfg.data.sources.items()}
    for key, path in paths.items():
        if not path or path.startswith(BUILTIN):
            continue
        if path.startswith("demo:"):
            if path.removeprefix("demo:") not in DEMO_PARTS:
                yield f"{key}={path} is not a bundled data set; choose one of {', '.join(f'demo:{part}' for part in DEMO_PARTS)}"
        elif glob.has_magic(path):
            if not glob.glob(path, recursive=True):
                yield f"{key}={path} matches no file"
        elif path.endswith(DATA_SUFFIXES) or not is_hub_id(path.removeprefix("hf://").removeprefix("datasets/")):
            yield from _must_exist(key, path)
            if Path(path).expanduser().is_file() and not path.endswith(DATA_SUFFIXES):
                yield f"{key}={path}: unsupported file format; use .jsonl, .json or .parquet (also .gz, .zst)"
    yield from _must_exist("data.blend", cfg.data.blend)


def model_exists(cfg: SftConfig) -> Iterator[str]:
    """`model.path` is a model folder, or may be a hub id."""
    path = cfg.model.path
    if path is None or is_hub_id(path):
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        yield from _must_exist("model.path", path)
    elif checkpoint := torch_dist_folder(folder):
        yield from _megatron_needs(cfg, checkpoint)
    elif not (folder / "config.json").is_file():
        exported = folder / "hf"
        hint = f"; did you mean {exported}?" if (exported / "config.json").is_file() else ""
        yield (
            adapter_problem("model.path", path)
            or megatron_problem("model.path", path)
            or (f"model.path={path} has no config.json: it is not a Hugging Face model folder{hint}")
        )


def weights_are_whole(cfg: SftConfig) -> Iterator[str]:
    """Index and headers of a local model's weight files are complete, checked before data is prepared."""
    if cfg.model.path is None or cfg.runner in (Runner.data_prep, Runner.inspect):
        return
    folder = Path(cfg.model.path).expanduser()
    if not (folder / "config.json").is_file() or torch_dist_folder(folder) is not None:
        return  # model_exists reports it, it is on the hub, or the Megatron reader checks it
    try:
        architecture = read_architecture(cfg)
    except ModelError:
        return  # model_is_set reports it
    if not has_weights(folder) and not cfg.dry_run:  # a plan needs no more than config.json
        yield f"model.path={cfg.model.path} has a config.json but no weights; add {SINGLE}, or several files with {INDEX}"
    yield from (f"model.path: {problem}" for problem in weight_problems(folder, architecture))


def _megatron_needs(cfg: SftConfig, checkpoint: Path) -> Iterator[str]:
    """A Megatron checkpoint does not contain the architecture or the tokenizer, so both must be set."""
    if not read_architecture(cfg):
        yield (
            f"model.path={cfg.model.path}: a Megatron checkpoint has no config.json. Set the matching model=... "
            "(e.g. model=qwen3_0_6b), or copy the config.json of its Hugging Face model into the folder"
        )
    if cfg.tokenizer.path is None and not (checkpoint / "tokenizer.json").is_file():
        yield (
            f"model.path={cfg.model.path}: a Megatron checkpoint has no tokenizer.json; set tokenizer.path=<folder or hub "
            "id of its tokenizer>"
        )


def adapter_problem(key: str, path: str) -> str | None:
    """The message for an adapter folder set as the model; None if it is not an adapter."""
    if not is_adapter_folder(path):
        return None
    return f"{key}={path} is a LoRA adapter in PEFT's format, not a full model; set peft.path={path} instead of {key}"


def tokenizer_exists(cfg: SftConfig) -> Iterator[str]:
    """The tokenizer and the chat template file exist."""
    path, template = cfg.tokenizer.path, cfg.tokenizer.chat_template
    if path not in (None, "demo") and not is_hub_id(str(path)):
        yield from _must_exist("tokenizer.path", path)
    # a single word may be the name of a template inside the tokenizer; checked when the tokenizer is loaded
    if (
        template not in (None, "default")
        and "{" not in str(template)
        and not re.fullmatch(r"[A-Za-z]\w*", str(template))
    ):
        yield from _must_exist("tokenizer.chat_template", template)


def files_exist(cfg: SftConfig) -> Iterator[str]:
    """Every other file that the config names exists."""
    load = cfg.checkpoint.load
    yield from _must_exist("checkpoint.load", load)
    if load is not None and (
        problem := adapter_problem("checkpoint.load", load) or megatron_problem("checkpoint.load", load)
    ):
        yield problem
    yield from _must_exist("generate.prompt_file", cfg.generate.prompt_file)
    if cfg.eval.exact_match.path != "demo":
        yield from _must_exist("eval.exact_match.path", cfg.eval.exact_match.path)


def output_is_writable(cfg: SftConfig) -> Iterator[str]:
    """The nearest existing parent of `output_dir` is a writable folder."""
    wanted = Path(str(cfg.run_dir)).absolute()
    there = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    if not there.is_dir():
        yield f"output_dir={cfg.output_dir}: {there} is a file, not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"output_dir={cfg.output_dir}: {there} is not writable; choose another output_dir"


def packed_length(packed_dir: str | None) -> int | None:
    """`seq_length` of the packed set in a folder; None if there is none. ValueError if its metadata cannot be read."""
    try:
        metadata = _metadata(Path(packed_dir).expanduser()) if packed_dir else {}
        if "format_version" not in metadata:
            return None
        return int(metadata["pack_size"])
    except ConfigError as error:
        raise ValueError("; ".join(error.problems)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{packed_dir}/metadata.json: not the metadata of a packed set ({error!r}); choose another data.packed_dir"
        ) from error


def packed_set_fits(cfg: SftConfig) -> Iterator[str]:
    """The packed set in `data.packed_dir` has the run's `seq_length`, checked before a model is loaded."""
    if cfg.data.packed_dir is None or cfg.runner not in DATA_RUNNERS:
        return
    folder = Path(cfg.data.packed_dir).expanduser()
    if cfg.data.trust_foreign:
        yield from _must_exist("data.packed_dir", cfg.data.packed_dir)
    try:
        is_ours = "format_version" in _metadata(folder)
    except ConfigError as error:
        yield from error.problems
        return
    if not is_ours:
        if not cfg.data.trust_foreign and folder.is_dir() and any(folder.iterdir()):
            yield (
                f"data.packed_dir={cfg.data.packed_dir}: not a packed set of this project. If another tool packed it, "
                "set data.trust_foreign=true; to prepare a new set, choose another data.packed_dir"
            )
        return
    try:
        pack_size = packed_length(cfg.data.packed_dir)
    except ValueError as error:
        yield str(error)
        return
    if pack_size != cfg.seq_length:
        yield (
            f"seq_length_mismatch: {cfg.data.packed_dir} was packed for seq_length={pack_size}, this run has "
            f"seq_length={cfg.seq_length}; set seq_length={pack_size}, or a new data.packed_dir to repack"
        )


def _metadata(folder: Path) -> dict[str, Any]:
    """The content of metadata.json; empty if there is none. ConfigError if it cannot be read."""
    file = folder / "metadata.json"
    return read_object(file, fix="choose another data.packed_dir") if exists(file) else {}


def _must_exist(key: str, path: str | None) -> Iterator[str]:
    if path is None or Path(path).expanduser().exists():
        return
    file = Path(path).expanduser()
    if file.parent.is_dir():
        near = difflib.get_close_matches(file.name, [entry.name for entry in file.parent.iterdir()], n=1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else f" in {file.parent.absolute()}"
    else:
        hint = f"; the folder {file.parent} does not exist"
    yield f"{key}={path}: not found{hint}"


FILE_RULES = (
    data_exists,
    model_exists,
    weights_are_whole,
    tokenizer_exists,
    files_exist,
    output_is_writable,
    packed_set_fits,
)
