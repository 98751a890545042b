"""The pages, and commands of the pages resolved as a dry run in a folder that has the files they name.

Hydra composes the groups of a command once for all commands that share them; values are then applied as Hydra does.
"""

import copy
import itertools
import json
import shlex
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict
from safetensors.numpy import save_file

from sft_hydra.config.argv import experiment_files, normalize_argv
from sft_hydra.config.hydra_internals import ConfigLoaderImpl
from sft_hydra.config.resolve import resolve
from sft_hydra.config.store import register
from sft_hydra.paths import conf_dir, state_digest
from sft_hydra.schema.config import SftConfig

FILES = (
    "chats.jsonl",
    "valid.jsonl",
    "code.jsonl",
    "math.jsonl",
    "identity.jsonl",
    "questions.jsonl",
    "template.jinja",
)
FOLDERS = ("output/stage1_sft", "iter_0001000", "packed", "earlier/step_500", "my_model", "items", "tasks")
PROGRESS = (
    '{"format": 1, "state": {"step": 500}, "sizes": {"seq_length": 4096, "global_batch_size": 8, "micro_batch_size": 1}, '
    '"rates": {"lr": 1e-5, "matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 4e-3}}'
)


@pytest.fixture(scope="session")
def pages(repo: Path) -> dict[str, str]:
    """Name -> text of README.md and of every page of the documentation."""
    paths = [repo / "README.md", repo / "CONTRIBUTING.md", *sorted((repo / "docs").rglob("*.md"))]
    return {str(path.relative_to(repo)): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="session")
def dry_run(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[SftConfig]]:
    """dry_run("key=value ...") -> the config of each job; raises what the command line would show."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in FILES:
        (folder / name).write_text(
            '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
        )
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    (folder / "earlier/step_500/state.json").write_text(PROGRESS)
    (folder / "earlier/step_500/COMPLETE").write_text(state_digest(folder / "earlier/step_500"))
    (folder / "iter_0001000/metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (folder / "iter_0001000/.metadata").touch()
    (folder / "my_model" / "config.json").write_text('{"model_type": "qwen3"}')
    _write_adapter(folder / "my_adapter")
    (folder / "blend.json").write_text('{"datasets": [{"name": "chats", "path": "chats.jsonl"}]}')
    (folder / "mine.yaml").write_text("# @package _global_\noptimizer:\n  lr: 1.0e-4\n")
    (folder / "tools.json").write_text("[]")
    (folder / "tally.yaml").write_text(pages["docs/tutorial.md"].split("```yaml\n")[1].split("```")[0])
    (folder / "prompt.txt").write_text("Answer: {}")

    register()

    @lru_cache
    def compose_groups(groups: tuple[str, ...]) -> DictConfig:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("config", overrides=list(groups), return_hydra_config=True)

    def one_run(argv: list[str]) -> SftConfig:
        groups = tuple(
            word for word in argv if (conf_dir() / word.partition("=")[0]).is_dir() or word.startswith("hydra/")
        )
        config = copy.deepcopy(compose_groups(groups))
        values = OverridesParser.create().parse_overrides([word for word in argv if word not in groups])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        launcher = str(config.hydra.runtime.choices["hydra/launcher"])
        with open_dict(config):
            del config["hydra"]
        return resolve(config, argv, launcher=launcher)

    @lru_cache
    def run(text: str) -> list[SftConfig]:
        argv = [*shlex.split(text), "dry_run=true"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            if files := list(experiment_files(argv)):
                register(files)
            return [one_run(job) for job in jobs(normalize_argv(argv))]

    return run


def _write_adapter(folder: Path) -> None:
    folder.mkdir()
    named = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "my_model"}
    (folder / "adapter_config.json").write_text(json.dumps(named))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{layer}.lora_A.weight": np.zeros((2, 8)), f"{layer}.lora_B.weight": np.zeros((8, 2))}
    save_file(factors, folder / "adapter_model.safetensors")


def jobs(argv: list[str]) -> Iterator[list[str]]:
    """The overrides of each job of a command; one job without `-m`."""
    overrides = [word for word in argv if not word.startswith("-")]
    if len(overrides) == len(argv):
        yield overrides
        return
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [word]
        for o, word in zip(parsed, overrides, strict=True)
    ]
    yield from map(list, itertools.product(*choices))
