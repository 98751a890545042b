"""Generates docs/config.md from the dataclasses and the first comment of each option in `conf/`.

python -m sft_hydra.config.reference > docs/config.md
"""

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from omegaconf import MISSING

from sft_hydra.config.schema_introspection import field_types
from sft_hydra.paths import conf_dir
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import OPTIMIZERS, Optimizer
from sft_hydra.schema.ranges import RANGE

GROUPS = ("runner", "model", "data", "peft", "optimizer", "scheduler", "parallel", "cluster", "logger", "experiment")
BROUGHT = {"peft": "`peft=lora` or `peft=qlora` adds this section; without it, `peft` is `null`."}
HEAD = """# Config reference

Generated from the dataclasses in `sft_hydra/schema/` by `python -m sft_hydra.config.reference`. Values
set by a group option override the defaults below; `python -m sft_hydra --cfg job` prints the config of a command.

## Groups

`group=option` on the command line. The command beside an option is one that uses it.
"""


def reference() -> str:
    """The Markdown text of docs/config.md."""
    return "\n".join([HEAD, *_groups(), *_sections()]).rstrip() + "\n"


def _groups() -> Iterator[str]:
    for group in GROUPS:
        yield f"### {group}=...\n\n| option | what | command |\n|---|---|---|"
        for file in sorted((conf_dir() / group).glob("*.yaml")):
            comments = [
                line[2:] for line in file.read_text().splitlines() if line.startswith("# ") and "@package" not in line
            ]
            what, _, command = comments[0].rpartition(": python")
            yield f"| `{file.stem}` | {_cell(what)} | `python{_cell(command)}` |"
        yield ""


def _sections() -> Iterator[str]:
    types = field_types(SftConfig)
    plain = [name for name in types if not _is_section(types[name])]
    yield "## Top level\n"
    yield from _table(_rows(SftConfig, "", only=plain))
    for name, declared in types.items():
        if name in plain:
            continue
        yield f"## {name}\n"
        if name in BROUGHT:
            yield BROUGHT[name] + "\n"
        if declared is Optimizer:
            yield from _table(_rows(Optimizer, name))
            shared = set(field_types(Optimizer))
            for kind, variant in OPTIMIZERS.items():
                if more := [field for field in field_types(variant) if field not in shared]:
                    yield f"With `optimizer={kind}` also:\n"
                    yield from _table(_rows(variant, name, only=more))
        else:
            yield from _table(_rows(declared, name))


def _table(rows: Iterator[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for key, kind, default, text in rows:
        yield f"| `{key}` | {kind} | {default} | {_cell(text)} |"
    yield ""


def _rows(cls: Any, section: str, only: list[str] | None = None) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of each field, those of sections inside it included."""
    texts = _texts(cls)
    types = field_types(cls)
    for field in dataclasses.fields(cls):
        if only is not None and field.name not in only:
            continue
        key = f"{section}.{field.name}" if section else field.name
        declared = types[field.name]
        if dataclasses.is_dataclass(declared):
            yield from _rows(declared, key)
        elif typing.get_origin(declared) is dict and dataclasses.is_dataclass(typing.get_args(declared)[1]):
            yield from _rows(typing.get_args(declared)[1], f"{key}.<name>")
        else:
            kind = _type(declared)
            if allowed := field.metadata.get(RANGE):
                kind += f", {allowed.describe()}"
            yield key, kind, _default(field), texts.get(field.name, "")


def _texts(cls: Any) -> dict[str, str]:
    """Field -> the text under it in the source; inherited fields first."""
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        (tree,) = ast.parse(inspect.getsource(typing.cast(type, base))).body
        body = typing.cast(ast.ClassDef, tree).body
        for field, below in zip(body, [*body[1:], None], strict=True):
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and documented:
                found[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return found


def _is_section(declared: Any) -> bool:
    return dataclasses.is_dataclass(declared)


def _type(declared: Any) -> str:
    if isinstance(declared, type) and issubclass(declared, Enum):
        return ", ".join(f"`{member.name}`" for member in declared)
    names = {int: "integer", float: "number", bool: "true, false", str: "text"}
    return names.get(declared) or ("list" if typing.get_origin(declared) is list else "mapping")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value == MISSING:
        return "(set by the option)"
    if isinstance(value, Enum):
        value = value.name
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        value = "[" + ", ".join(str(item) for item in value) + "]"
    return f"`{value}`"


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\|", text)


if __name__ == "__main__":
    print(reference(), end="")
