"""Key names of other frameworks: for an unknown flag or key that another framework uses, returns the equivalent here.

Covers Megatron-LM's arguments, Megatron-Bridge and the Nemotron recipes, NeMo RL, nanochat, TRL, Axolotl and submitit's
launcher. The names are in peer_keys.yaml, which documents its notation.
"""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sft_hydra.schema.config import SftConfig

UNKNOWN = "..."  # replaces an unknown value
_NAMED = re.compile(r"\{(\w*)\}")


class Answer(NamedTuple):
    """The equivalent of another framework's key: `key`, our key with the same value, if there is one; `line`, the overrides to
    write; or `why`, the reason why there is none. Unused fields are empty."""

    key: str = ""
    line: str = ""
    why: str = ""

    def __str__(self) -> str:
        if self.why:
            return f"there is no equivalent: {self.why}"
        if not self.key:
            return f"write {self.line} instead"
        return f"it is called {self.key} here" + (f": {self.line}" if UNKNOWN not in self.line else "")


@cache
def peer_tables() -> dict[str, dict[str, Any]]:
    """Framework -> its key -> our entry, as in peer_keys.yaml; `any` has the keys that frameworks share."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("peer_keys.yaml").read_text("utf-8"))
    return table


def peer_answer(key: str, value: str | None = None) -> Answer | None:
    """The equivalent of an unknown flag or key of the command line; `value` as typed. None if no framework has this key."""
    name = key.lstrip("-+~").replace("-", "_")
    tables = peer_tables()
    for table in tables.values():
        if name in table:
            return _answer(table[name], value, {})
    if name.partition(".")[0] in SftConfig.__dataclass_fields__:
        return None  # more likely a misspelt key of ours than a rare one of another framework
    found = (section_entry(name, table) for table in tables.values())
    return next((_answer(entry, value, {}) for entry in found if entry is not None), None)


def file_answer(
    peer: str, key: str, value: str | None, beside: Mapping[str, str], ours: Collection[str]
) -> Answer | None:
    """The equivalent of a key in a config file of the framework `peer`; None if it has no entry.

    `beside`: the other values of its section; `ours`: all our keys. A value of null means the framework's default and is
    treated as unknown."""
    table = peer_tables()[peer]
    if key in table:
        entry = table[key]
    elif key in ours:
        entry = key
    else:
        entry = section_entry(key, table)
    if entry is None:
        return None
    default = value == "null" and not (isinstance(entry, dict) and "null" in entry)
    return _answer(entry, None if default else value, beside)


def section_entry(key: str, table: Mapping[str, Any]) -> Any:
    """The entry `<section>.*` of the innermost section that has one; None if none has."""
    section = key.rpartition(".")[0]
    while section and f"{section}.*" not in table:
        section = section.rpartition(".")[0]
    return table.get(f"{section}.*")


def _answer(entry: Any, value: str | None, beside: Mapping[str, str]) -> Answer:
    if isinstance(entry, dict):
        texts = [text for pattern, text in entry.items() if fnmatchcase(str(value).lower(), str(pattern).lower())]
        entry = texts[0] if texts and value is not None else entry.get("*", next(iter(entry.values())))
    if entry.startswith("- "):
        return Answer(why=entry.removeprefix("- "))
    if "=" not in entry:
        return Answer(entry, f"{entry}={UNKNOWN if value is None else value}")
    return Answer(line=_NAMED.sub(lambda name: _filled(name[1], value, beside), entry))


def _filled(name: str, value: str | None, beside: Mapping[str, str]) -> str:
    if name == "rest":
        try:
            return f"{1 - float(value or UNKNOWN):.6g}"
        except ValueError:
            return UNKNOWN
    found = beside.get(name) if name else value
    return UNKNOWN if found is None else found
