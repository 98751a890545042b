"""Registers with Hydra the dataclasses as `schema/...`, our launchers and sweeper, and a user's experiment files.

Separate from serialize.py, so that reading a `resolved.yaml` registers nothing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from yaml import YAMLError

from sft_hydra.config.argv import option_of_file
from sft_hydra.config.from_checkpoint import allow_null
from sft_hydra.config.peer_files import refuse_peer_file
from sft_hydra.config.typed_text import read_yaml
from sft_hydra.config.values_only import experiment_problems
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import OPTIMIZERS, Optimizer
from sft_hydra.schema.peft import LoraConfig

PLUGIN = "hydra_plugins.sft_hydra_launcher.launcher"


def register(experiments: Iterable[Path] = ()) -> None:
    """Register everything. ConfigError if an experiment file is missing, not YAML or contains more than values."""
    store = ConfigStore.instance()
    root = SftConfig(optimizer=Optimizer())  # the base class, so that a group option may put any variant there
    store.store(group="schema", name="root", node=allow_null(root))
    store.store(group="schema/peft", name="lora", node=LoraConfig)
    for kind, optimizer in OPTIMIZERS.items():
        store.store(group="schema/optimizer", name=kind, node=allow_null(optimizer, "optimizer."))
    _register_plugins(store)
    for path in experiments:
        option = Path("experiment", option_of_file(path))
        store.store(group=str(option.parent), name=option.name, node=_read(path), package="_global_")


def _register_plugins(store: ConfigStore) -> None:
    Plugins.instance()  # scans, and so registers submitit's stock launchers if they are installed; ours come after
    for cluster in ("local", "slurm"):
        node = {"_target_": f"{PLUGIN}.SftLauncher", "cluster": cluster}
        store.store(group="hydra/launcher", name=f"submitit_{cluster}", node=node)
    store.store(group="hydra/sweeper", name="sft_hydra", node={"_target_": f"{PLUGIN}.SftSweeper", "params": None})


def _read(path: Path) -> dict[Any, Any]:
    try:
        node = read_yaml(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"experiment={path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"experiment={path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, dict):
        raise ConfigError(f"experiment={path}: is not a mapping of keys to values")
    refuse_peer_file(node, f"experiment={path}")
    if problems := [f"experiment={path}: {problem}" for problem in experiment_problems(node)]:
        raise ConfigError(*problems)
    return node
