"""Hands to Hydra what is not YAML: the dataclasses as `schema/...`, our launchers and sweeper, a user's experiment files.

A file of its own, so that reading a `resolved.yaml` registers nothing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sft_hydra.config.inherit import allow_null
from sft_hydra.config.normalise import option_of_file
from sft_hydra.config.schema import LoraConfig, SftConfig
from sft_hydra.config.schema_optim import OPTIMIZERS, Optimizer
from sft_hydra.errors import ConfigError

PLUGIN = "hydra_plugins.sft_hydra_launcher.launcher"


def register(experiments: Iterable[Path] = ()) -> None:
    """Raises ConfigError if an experiment file is missing or no YAML."""
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
        node = OmegaConf.to_container(OmegaConf.load(path.expanduser()))
    except OSError as error:
        raise ConfigError(f"experiment={path}: {error.strerror}") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"experiment={path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, dict):
        raise ConfigError(f"experiment={path}: holds no mapping of keys to values")
    return node
