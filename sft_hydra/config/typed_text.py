"""Keeps values of text fields as typed, by the declared type of the field.

Hydra and YAML infer the type from the value: `name=1e3` would become `1000.0`, `time: 12:00:00` a number of seconds,
`A: yes` true. null is null everywhere.
"""

import re
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from antlr4 import CommonTokenStream, InputStream, ParserRuleContext
from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf._utils import get_yaml_loader

from sft_hydra.config.schema_introspection import field_types
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import OPTIMIZERS, Optimizer

LOOKS_LIKE_OTHERS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
PASSING_ON = ("choice", "sort", "shuffle", "tag", "str", "extend_list")  # functions whose arguments are the values
MAY_BE_OTHER = re.compile(r"(?<![\w./'\"])[+-]?(\d|\.\d|nan\b|inf\b|true\b|false\b)", re.IGNORECASE)
OLD_NUMBER = re.compile(r"[+-]?0[0-7_]+|.*:.*")  # octal and to base 60 in YAML 1.1; not on the command line
NULL, MERGE, TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "merge", "str"))


def quote_text(override: str) -> str:
    """A command-line override with quotes around values of text fields that would be read as numbers or booleans. All others,
    and overrides that Hydra cannot parse, are returned unchanged."""
    key, equals, value = override.partition("=")
    declared = declared_at(key.lstrip("+~").partition("@")[0].split("."))
    if not equals or not MAY_BE_OTHER.search(value) or not _holds_text(declared):
        return override
    try:
        tree = _parse(override)
    except HydraException:
        return override
    for start, stop in sorted(_unquoted(tree, declared), reverse=True):
        override = f"{override[:start]}'{override[start:stop]}'{override[stop:]}"
    return override


def _parse(override: str) -> Any:
    """Tree of an override by Hydra's own grammar; HydraException if it cannot be parsed."""
    lexer = OverrideLexer(InputStream(override))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(HydraErrorListener())
    return parser.override()


def read_yaml(text: str, package: str = "") -> Any:
    """The content of a YAML file whose keys stand below `package` (dotted; "" for the top level), as plain containers.

    Raises yaml.YAMLError."""
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        _keep_text(node, declared_at(package.split(".") if package else []))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def declared_at(path: list[str]) -> Any:
    """Declared type of a key, without `| None`; None if no dataclass declares it."""
    declared: Any = SftConfig
    for name in path:
        declared = _child(declared, name)
    return declared


def _child(declared: Any, name: str) -> Any:
    """Type of an entry of a section or mapping."""
    if typing.get_origin(declared) is dict:
        return typing.get_args(declared)[1]
    return _fields(declared).get(name)


@cache
def _fields(section: Any) -> dict[str, Any]:
    """Types of a section's fields; for the optimizer, those of all variants."""
    if section is Optimizer:
        return {name: kind for variant in OPTIMIZERS.values() for name, kind in field_types(variant).items()}
    return field_types(section) if hasattr(section, "__dataclass_fields__") else {}


def _holds_text(declared: Any) -> bool:
    arguments = typing.get_args(declared)
    return (
        declared is str or (bool(arguments) and _holds_text(arguments[-1])) or hasattr(declared, "__dataclass_fields__")
    )


def _unquoted(tree: Any, declared: Any) -> Iterator[tuple[int, int]]:
    """(start, stop) of every single value below `tree` that must be quoted to stay text."""
    if isinstance(tree, OverrideParser.PrimitiveContext):
        parts = [child.symbol for child in tree.getChildren() if child.symbol.type != OverrideLexer.WS]
        if declared is str and len(parts) == 1 and parts[0].type in LOOKS_LIKE_OTHERS:
            yield parts[0].start, parts[0].stop + 1
        return
    if isinstance(tree, OverrideParser.ListContainerContext):
        declared = typing.get_args(declared)[0] if typing.get_origin(declared) is list else None
    if isinstance(tree, OverrideParser.DictKeyValuePairContext):
        declared = _child(declared, tree.dictKey().getText().strip())
    if isinstance(tree, OverrideParser.FunctionContext):
        name = tree.ID().getText()
        if name not in PASSING_ON:
            return
        if name == "extend_list":
            declared = typing.get_args(declared)[0] if typing.get_origin(declared) is list else None
    for child in tree.getChildren():
        if isinstance(child, ParserRuleContext):
            yield from _unquoted(child, declared)


def _keep_text(node: yaml.Node, declared: Any) -> None:
    """Mark the plain scalars of a YAML tree that are declared as text, and names in mappings, as text."""
    if isinstance(node, yaml.ScalarNode):
        other_number = declared in (int, float) and OLD_NUMBER.fullmatch(node.value)
        if node.tag != NULL and (declared is str or other_number):
            node.tag = TEXT
    elif isinstance(node, yaml.SequenceNode):
        item = typing.get_args(declared)[0] if typing.get_origin(declared) is list else None
        for child in node.value:
            _keep_text(child, item)
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            if key.tag == MERGE:
                for merged in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    _keep_text(merged, declared)
                continue
            if isinstance(key, yaml.ScalarNode) and (_fields(declared) or typing.get_origin(declared) is dict):
                key.tag = TEXT
            _keep_text(child, _child(declared, str(key.value)))
