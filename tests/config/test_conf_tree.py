"""Every YAML file under conf/ composes and resolves, and says what it is and how to use it."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from sft_hydra.paths import conf_dir, state_digest
from sft_hydra.schema.config import SftConfig

FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
OPTIONS = [path.with_suffix("") for path in FILES if len(path.parts) > 1 and path.parts[0] != "hydra"]
GROUPS = ("runner", "model", "data", "peft", "optimizer", "scheduler", "parallel", "cluster", "logger", "experiment")
NEEDS = {  # what an option asks of its user
    "data/jsonl": ["data.path={file}"],
    "data/blend": ["data.blend={file}"],
    "model/hf": ["model.path={folder}"],
    "parallel/tp8_pp4": ["model=super3", "cluster=slurm", "cluster.nodes=4", "train.global_batch_size=32"],
    "cluster/slurm": ["train.global_batch_size=8"],
    "experiment/nanochat": ["checkpoint.load={earlier}"],
    "data/packed": ["data.packed_dir={shards}"],
    "experiment/step_tiny": ["data.packed_dir={shards}"],
}


@pytest.fixture
def user_files(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3", "num_attention_heads": 2, "num_hidden_layers": 2}')
    file = tmp_path / "chats.jsonl"
    file.write_text("")
    earlier = tmp_path / "earlier/step_5"
    earlier.mkdir(parents=True)
    sizes = {"seq_length": 2048, "global_batch_size": 256, "micro_batch_size": 32}
    rates = {"lr": 0.004, "matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.004}
    (earlier / "state.json").write_text(json.dumps({"format": 1, "state": {"step": 5}, "sizes": sizes, "rates": rates}))
    (earlier / "COMPLETE").write_text(state_digest(earlier))
    shards = tmp_path / "shards"  # empty: a packed set is prepared there
    shards.mkdir()
    return {"file": str(file), "folder": str(folder), "earlier": str(earlier), "shards": str(shards)}


def test_the_tree_is_complete() -> None:
    assert len(FILES) == 60
    assert {path.parts[0] for path in OPTIONS} == {*GROUPS, "model_data"}


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_option_resolves(option: Path, resolved: Callable[..., SftConfig], user_files: dict[str, str]) -> None:
    needs = [text.format(**user_files) for text in NEEDS.get(str(option), [])]
    cfg = resolved(f"{option.parent}={option.name}", "dry_run=true", *needs)
    assert cfg.run_dir
    if option.parts[0] == "runner":
        assert cfg.runner.value == option.name
    if option.parts[0] in ("model", "data"):
        assert getattr(cfg, option.parts[0]).name == option.name
    if option.parts[0] == "scheduler":
        assert cfg.scheduler.kind == option.name
    if option.parts[0] == "cluster":
        assert cfg.cluster.kind.value == option.name
    if option.parts[0] == "logger" and option.name != "null":
        assert getattr(cfg.logger, option.name) is not None


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file_opens_with_what_it_is_and_a_command_that_composes(
    file: Path, composed: Callable[..., DictConfig]
) -> None:
    lines = (conf_dir() / file).read_text().splitlines()
    comment = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert re.match(r"# [A-Z\d].*python -m sft_hydra", comment, re.IGNORECASE), comment
    arguments = shlex.split(comment.split("python -m sft_hydra", 1)[1])
    composed(*(text for text in arguments if "=" in text and not text.startswith("[")))


def test_help_names_exactly_the_options() -> None:
    template = yaml.safe_load((conf_dir() / "hydra/help/sft_hydra.yaml").read_text())["template"]
    assert len(template.splitlines()) <= 40
    listed = re.split(r"\n\n|Groups.*\n", template[template.index("Groups") :])[1]
    entries = re.sub(r"\n {6,}", " ", listed)
    for line in entries.splitlines():
        group, options = line.split(maxsplit=1)
        names = set(re.split(r",\s*", re.split(r"\s{3,}|, or", options)[0]))
        assert names == {path.name for path in OPTIONS if path.parts[0] == group}
    assert entries.count("\n") + 1 == len(GROUPS)


@pytest.mark.parametrize(
    ("option", "folder"),
    [
        ("qwen3_0_6b", "Qwen3-0.6B"),
        ("nano3", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
        ("super3", "NVIDIA-Nemotron-3-Super-120B-A12B-BF16"),
    ],
)
def test_architecture_hints_are_those_of_the_published_model(
    option: str, folder: str, resolved: Callable[..., SftConfig], shared: Path
) -> None:
    published = json.loads((shared / "assets/models" / folder / "config.json").read_text())
    hints = resolved(f"model={option}", "dry_run=true").model.architecture
    assert hints == {key: published[key] for key in hints}
