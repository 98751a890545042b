"""Which keys exist, of which type, and what to answer when one does not: nearest name, the option that brings it, a peer's name."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft_hydra.config.peers import our_name
from sft_hydra.config.schema import SftConfig
from sft_hydra.config.schema_optim import OPTIMIZERS, Optimizer

GROUPS_BESIDE_KEYS = ("experiment",)  # groups that are no section


def field_types(cls: Any) -> dict[str, Any]:
    """Declared type of each field of a dataclass, without `| None`."""
    return {field.name: _without_none(field.type) for field in dataclasses.fields(cls)}


def unknown_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys in a composed config that no dataclass declares: Hydra lets `+train.lrr=1` pass."""
    cls = OmegaConf.get_type(node)
    declared = field_types(cls) if dataclasses.is_dataclass(cls) else None
    for name in node:
        if declared is not None and name not in declared:
            yield f"{prefix}{name}"
        elif OmegaConf.is_dict(child := node._get_node(name)) and not child._is_none() and not child._is_missing():
            yield from unknown_keys(child, f"{prefix}{name}.")


def key_problem(key: str, config: DictConfig) -> str | None:
    """Why `key` cannot be set in this composed config, with a hint; None if it can."""
    node: Any = config
    declared: Any = SftConfig
    path = ""
    for name in key.split("."):
        section = path.rstrip(".")
        if dataclasses.is_dataclass(declared):
            if node is None:
                return f"{key}: {section} is null here; {_option_that_brings(section)}"
            cls = OmegaConf.get_type(node)
            known = field_types(cls)
            if name not in known:
                return f"{key}: {unknown_key_hint(key, path, name, known)}"
            declared = known[name]
        elif typing.get_origin(declared) is dict:
            if node is None or name not in node:
                return f"{key}: there is no {path}{name} yet; write +{key}=... to add it"
            declared = typing.get_args(declared)[1]
        elif declared is not Any:
            return f"{key}: {section} is {describe_type(declared)}, there is nothing below it"
        node = None if node is None else OmegaConf.select(node, name) if OmegaConf.is_config(node) else None
        path += f"{name}."
    return None


def declared_type(key: str, config: DictConfig) -> Any:
    """Type of an existing key."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    cls = OmegaConf.get_type(node)
    return field_types(cls).get(name, Any) if dataclasses.is_dataclass(cls) else Any


def unknown_key_hint(key: str, path: str, name: str, known: dict[str, Any]) -> str:
    """`unknown key; did you mean ...`: a peer's name first, then siblings, then the same name elsewhere."""
    if ours := our_name(key):
        return f"unknown key; it is called {ours} here"
    if path == "optimizer." and (kinds := [kind for kind, cls in OPTIMIZERS.items() if name in field_types(cls)]):
        return f"unknown key; it exists with optimizer={' or '.join(kinds)}"
    siblings = [*known, *(() if path else GROUPS_BESIDE_KEYS)]
    if near := difflib.get_close_matches(name, siblings, n=1):
        return f"unknown key; did you mean {path}{near[0]}?"
    everywhere = {leaf: full for full in all_keys() if (leaf := full.rpartition(".")[2])}
    if near := difflib.get_close_matches(name, everywhere, n=1, cutoff=0.8):
        return f"unknown key; did you mean {everywhere[near[0]]}?"
    where = path.rstrip(".") or "the top level"
    return f"unknown key; {where} has: {', '.join(siblings)}"


def all_keys(cls: Any = SftConfig, prefix: str = "") -> Iterator[str]:
    """Every declared key, sections included; variants of the optimizer too."""
    for name, declared in field_types(cls).items():
        yield f"{prefix}{name}"
        variants = OPTIMIZERS.values() if declared is Optimizer else [declared]
        for variant in variants:
            if dataclasses.is_dataclass(variant):
                yield from all_keys(variant, f"{prefix}{name}.")


def describe_type(declared: Any) -> str:
    """A type in words."""
    if isinstance(declared, type) and issubclass(declared, Enum):
        return f"one of {', '.join(member.name for member in declared)}"
    if dataclasses.is_dataclass(declared) or typing.get_origin(declared) is dict:
        return "a section"
    if typing.get_origin(declared) is list:
        return "a list, like [a,b]"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(declared, "a value")


def _option_that_brings(section: str) -> str:
    if section.startswith("logger."):
        return f"it comes with logger={section.partition('.')[2]}"
    return f"it comes with {section}=lora" if section == "peft" else f"set {section} first"


def _without_none(declared: Any) -> Any:
    if isinstance(declared, types.UnionType):
        return next(arg for arg in typing.get_args(declared) if arg is not types.NoneType)
    return declared
