"""Rejects user YAML with calls of code, lookups of other values, or keys that make Hydra itself write files.

Experiment files are shared between people, so they may contain only values; files in a user's own config folder may look
values up (`${oc.env:USER}`).
"""

import re
from collections.abc import Iterator
from typing import Any

PLAIN_OF_HYDRA = frozenset({"mode", "sweeper"})  # keys of Hydra that an experiment may set
OWN_OF_HYDRA = PLAIN_OF_HYDRA | {
    "launcher",
    "searchpath",
    "help",
    "verbose",
}  # keys that a command, or a user's own folder, may set
_LOOK_UP = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*([\w.]+)\s*:")


def experiment_problems(content: dict[Any, Any]) -> Iterator[str]:
    """Messages for an experiment file with more than values; `content`: its keys from the top level."""
    hydra = content.get("hydra", {})
    if not isinstance(hydra, dict):
        yield "hydra can run other code; an experiment holds only values"
    elif more := sorted(map(str, hydra.keys() - PLAIN_OF_HYDRA)):
        yield f"hydra.{'|'.join(more)} can run other code; an experiment holds only values"
    yield from (f"{key} can run other code; an experiment holds only values" for key in _calls(content))
    for key, resolver in _look_ups(content):
        yield f"{key}: ${{{resolver}:...}} reads a value from the machine that runs it; an experiment holds only values"


def option_problems(content: dict[Any, Any]) -> Iterator[str]:
    """The same for a file in a user's own config folder, which may look values up."""
    hydra = content.get("hydra", {})
    names = hydra.keys() if isinstance(hydra, dict) else {"*"}
    yield from (hydra_problem(f"hydra.{name}") or "" for name in sorted(map(str, names)) if name not in OWN_OF_HYDRA)


def hydra_problem(key: str) -> str | None:
    """The message if this key of Hydra itself cannot be set; None if it can, or is not one."""
    section, _, rest = key.lstrip("+~").partition(".")
    if section != "hydra" or rest.split(".")[0] in OWN_OF_HYDRA:
        return None
    return f"{key}: not supported, because Hydra only composes the config here; set the run's folder with output_dir=... name=..."


def _calls(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (key for key in ("_target_", "()") if key in node)
    for _, child in _children(node):
        yield from _calls(child)


def _look_ups(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, resolver) of each text, or name, with `${resolver:...}`, nested ones included."""
    if isinstance(node, str):
        yield from ((key, match[1]) for match in _LOOK_UP.finditer(node))
    for name, child in _children(node):
        inside = f"{key}.{name}".lstrip(".")
        yield from _look_ups(str(name), inside)
        yield from _look_ups(child, inside)


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from enumerate(node)
