"""The declared keys and their types, and hints for unknown keys: the name of another framework, the nearest name, the option
that adds the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sft_hydra.config.aliases import peer_answer
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import OPTIMIZERS, Optimizer

GROUPS_BESIDE_KEYS = ("experiment",)  # groups that are not sections


class UnknownKey(NamedTuple):
    """A key that no dataclass declares."""

    key: str  # as it was written, down to a value
    section: str  # the declared section that does not have ...
    name: str  # ... this
    value: str | None = None  # as it was typed, if it is known


def unknown_keys(node: Any, section: str = "") -> Iterator[UnknownKey]:
    """Keys in a composed config that no dataclass declares: Hydra lets `+train.lrr=1` pass."""
    cls = OmegaConf.get_type(node)
    declared = field_types(cls) if dataclasses.is_dataclass(cls) else None
    for name in map(str, node):
        key, child = _join(section, name), node._get_node(name)
        if declared is not None and name not in declared:
            yield from (UnknownKey(leaf, section, name) for leaf, _ in leaves(child, key))
        elif is_filled(child):
            yield from unknown_keys(child, key)


def key_problem(key: str, config: DictConfig, value: str | None = None) -> str | None:
    """Why `key` cannot be set in this composed config, with a hint; None if it can. `value`: as it was typed."""
    node: Any = config
    declared: Any = SftConfig
    section = ""
    for name in key.split("."):
        if dataclasses.is_dataclass(declared):
            if node is None:
                return f"{key}: {section} is null; {_what_brings(section)}"
            known = field_types(OmegaConf.get_type(node))
            if name not in known:
                return f"{key}: {hint(UnknownKey(key, section, name, value), known)}"
            declared = known[name]
        elif typing.get_origin(declared) is dict:
            if node is None or name not in node:
                return f"{key}: {_join(section, name)} does not exist; write +{key}=... to add it"
            declared = typing.get_args(declared)[1]
        elif declared is not Any:
            return f"{key}: {section} is {describe_type(declared)} and has no keys"
        node = OmegaConf.select(node, name) if OmegaConf.is_config(node) else None
        section = _join(section, name)
    return None


def undeclared(node: Any, section: str = "") -> Iterator[UnknownKey]:
    """As `unknown_keys`, for a YAML file on its own: by the declared types alone, whichever variant is chosen."""
    everything = set(all_keys())
    for name in map(str, node):
        key, child = _join(section, name), node._get_node(name)
        if key not in everything:
            yield UnknownKey(key, section, name, _as_written(child))
        elif is_filled(child) and any(other.startswith(f"{key}.") for other in everything):
            yield from undeclared(child, key)


def hint(unknown: UnknownKey, siblings: Collection[str] | None = None) -> str:
    """`unknown key; did you mean ...`: the key of another framework first, then siblings, then the same name elsewhere."""
    key, section, name, value = unknown
    everything = list(dict.fromkeys(all_keys()))
    if answer := peer_answer(key, value):
        return f"unknown key; {answer}"
    if section == "optimizer" and (kinds := [kind for kind, cls in OPTIMIZERS.items() if name in field_types(cls)]):
        return f"unknown key; it exists with optimizer={' or '.join(kinds)}"
    if siblings is None:
        siblings = [other.rpartition(".")[2] for other in everything if other.rpartition(".")[0] == section]
    siblings = [*siblings, *(() if section else GROUPS_BESIDE_KEYS)]
    if near := difflib.get_close_matches(name, siblings, n=1):
        nearest = _join(section, near[0])
        rest = key.removeprefix(_join(section, name))
        return f"unknown key; did you mean {nearest + rest if nearest + rest in everything else nearest}?"
    elsewhere = {other.rpartition(".")[2]: other for other in sorted(everything)}
    if near := difflib.get_close_matches(key.rpartition(".")[2], elsewhere, n=1, cutoff=0.8):
        return f"unknown key; did you mean {elsewhere[near[0]]}?"
    if not siblings:
        return f"unknown key; there is no section {section}"
    return f"unknown key; {section or 'the top level'} has: {', '.join(siblings)}"


def all_keys(cls: Any = SftConfig, section: str = "") -> Iterator[str]:
    """Every declared key, sections included; those of all variants of the optimizer."""
    for name, declared in field_types(cls).items():
        yield _join(section, name)
        for variant in OPTIMIZERS.values() if declared is Optimizer else [declared]:
            if dataclasses.is_dataclass(variant):
                yield from all_keys(variant, _join(section, name))


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all values in a config that are not sections."""
    if not is_filled(node):
        yield key, OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
        return
    for name in map(str, node):
        yield from leaves(node._get_node(name), _join(key, name))


def field_types(cls: Any) -> dict[str, Any]:
    """Declared type of each field of a dataclass, without `| None`."""
    return {field.name: _without_none(field.type) for field in dataclasses.fields(cls)}


def declared_type(key: str, config: DictConfig) -> Any:
    """Type of an existing key; Any below a mapping."""
    section, _, name = key.rpartition(".")
    cls = OmegaConf.get_type(OmegaConf.select(config, section) if section else config)
    return field_types(cls).get(name, Any) if dataclasses.is_dataclass(cls) else Any


def describe_type(declared: Any) -> str:
    """A type in words, for messages."""
    if isinstance(declared, type) and issubclass(declared, Enum):
        return f"one of {', '.join(member.name for member in declared)}"
    if dataclasses.is_dataclass(declared) or typing.get_origin(declared) is dict:
        return "a section"
    if typing.get_origin(declared) is list:
        return "a list like [a,b]"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(declared, "a value")


def _what_brings(section: str) -> str:
    group, _, option = section.partition(".")
    return f"set {group}={option or 'lora'} first"


def is_filled(node: Any) -> bool:
    """Whether a section has values: not null, not `???`, not an interpolation."""
    return bool(OmegaConf.is_dict(node) and isinstance(node._content, dict) and node._content)


def _as_written(node: Any) -> str | None:
    """A single value as it would be written in a command; None for anything else."""
    value = None if OmegaConf.is_config(node) else node._value()
    return (
        str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, str | int | float) else None
    )


def _join(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _without_none(declared: Any) -> Any:
    if isinstance(declared, types.UnionType):
        return next(arg for arg in typing.get_args(declared) if arg is not types.NoneType)
    return declared
