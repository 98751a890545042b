"""Hands to Hydra what is not YAML: the dataclasses as `schema/...`, our launchers and sweeper, a user's experiment files.

A file of its own, so that reading a `resolved.yaml` registers nothing.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sft_hydra.config.argv import option_of_file
from sft_hydra.config.from_checkpoint import allow_null
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import LoraConfig, SftConfig
from sft_hydra.schema.optim import OPTIMIZERS, Optimizer

PLAIN_OF_HYDRA = frozenset({"mode", "sweeper"})  # what an experiment may say of Hydra itself
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
    if problems := [
        f"experiment={path}: {key} could start other code; an experiment holds values" for key in _code(node)
    ]:
        raise ConfigError(*problems)
    return node


def _code(node: dict[Any, Any]) -> Iterator[str]:
    """Keys of an experiment file by which Hydra would call what they name: files are passed on, commands are one's own."""
    hydra = node.get("hydra", {})
    if not isinstance(hydra, dict) or not PLAIN_OF_HYDRA.issuperset(hydra):
        yield f"hydra.{'|'.join(map(str, hydra.keys() - PLAIN_OF_HYDRA))}" if isinstance(hydra, dict) else "hydra"
    yield from _calls(node)


def _calls(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (key for key in ("_target_", "()") if key in node)
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _calls(child)
