"""What a user's YAML may not hold: calls of code, what is looked up elsewhere, and keys by which Hydra itself would write.

Experiment files are passed on from one person to the next, so they hold values and nothing else; a user's own folder of
options may look values up (`${oc.env:USER}`).
"""

import re
from collections.abc import Iterator
from typing import Any

PLAIN_OF_HYDRA = frozenset({"mode", "sweeper"})  # what an experiment may say of Hydra itself
OWN_OF_HYDRA = PLAIN_OF_HYDRA | {
    "launcher",
    "searchpath",
    "help",
    "verbose",
}  # what a command, or one's own folder, may
_LOOK_UP = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*([\w.]+)\s*:")


def experiment_problems(content: dict[Any, Any]) -> Iterator[str]:
    """`content`: the whole file, as keys below the top level."""
    hydra = content.get("hydra", {})
    if not isinstance(hydra, dict):
        yield "hydra could start other code; an experiment holds values"
    elif more := sorted(map(str, hydra.keys() - PLAIN_OF_HYDRA)):
        yield f"hydra.{'|'.join(more)} could start other code; an experiment holds values"
    yield from (f"{key} could start other code; an experiment holds values" for key in _calls(content))
    for key, resolver in _look_ups(content):
        yield f"{key}: ${{{resolver}:...}} looks a value up on the machine of whoever runs it; an experiment holds values"


def option_problems(content: dict[Any, Any]) -> Iterator[str]:
    """The same for a file of a user's own folder."""
    hydra = content.get("hydra", {})
    names = hydra.keys() if isinstance(hydra, dict) else {"*"}
    yield from (hydra_problem(f"hydra.{name}") or "" for name in sorted(map(str, names)) if name not in OWN_OF_HYDRA)


def hydra_problem(key: str) -> str | None:
    """Why this key of Hydra itself cannot be set; None if it can, or is none."""
    section, _, rest = key.lstrip("+~").partition(".")
    if section != "hydra" or rest.split(".")[0] in OWN_OF_HYDRA:
        return None
    return f"{key}: Hydra only composes here and writes nothing; where a run goes is said by output_dir=... name=..."


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
