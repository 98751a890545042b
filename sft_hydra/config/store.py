"""Hands the dataclasses of schema*.py to Hydra, in the group `schema/...`, which `conf/` builds on.

A file of its own, so that reading a `resolved.yaml` registers nothing.
"""

from hydra.core.config_store import ConfigStore

from sft_hydra.config.schema import LoraConfig, SftConfig
from sft_hydra.config.schema_optim import OPTIMIZERS, Optimizer


def register_schemas() -> None:
    store = ConfigStore.instance()
    root = SftConfig(optimizer=Optimizer())  # the base class, so that a group option may put any variant there
    store.store(group="schema", name="root", node=root)
    store.store(group="schema/peft", name="lora", node=LoraConfig)
    for kind, optimizer in OPTIMIZERS.items():
        store.store(group="schema/optimizer", name=kind, node=optimizer)
