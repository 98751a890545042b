"""Reads and writes resolved.yaml, an SftConfig on disk and the only config that ranks, jobs and resumed runs read."""

import dataclasses
import re
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_hydra.errors import ConfigError
from sft_hydra.files import exists, read_text
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import OPTIMIZERS


class _Quoting(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that OmegaConf or YAML 1.1 would read as another type."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if re.fullmatch(r"[A-Za-z_/][\w./ -]*", text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Quoting.add_representer(str, _represent_text)


def dump(cfg: SftConfig) -> str:
    """The config as YAML; `load` of it gives an equal config."""
    plain = OmegaConf.to_container(OmegaConf.create(_plain(dataclasses.asdict(cfg))))
    return str(yaml.dump(plain, Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=120))


def save(cfg: SftConfig, path: Path) -> None:
    """Write atomically, through a temporary file. ConfigError if the folder is not writable."""
    unfinished = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(dump(cfg))
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(
            f"output_dir={cfg.output_dir}: {path} cannot be written ({error.strerror}); choose another output_dir"
        ) from None


def load(path: Path) -> SftConfig:
    """The config in a file. ConfigError if it is missing, cannot be read or does not fit this version's schema."""
    if not exists(path):
        raise ConfigError(f"{path}: no such file")
    way_out = "delete the file, or choose another name=..."
    content = read_text(path, fix=way_out)
    try:
        text: Any = OmegaConf.create(content)
        kind = text.optimizer.kind  # selects the class, which YAML does not contain
        if kind not in OPTIMIZERS:
            raise ConfigError(f"{path}: optimizer.kind={kind} is not one of {', '.join(OPTIMIZERS)}")
        schema = OmegaConf.structured(SftConfig(optimizer=OPTIMIZERS[kind]()))
        cfg = OmegaConf.to_object(OmegaConf.merge(schema, text))
    except (
        OmegaConfBaseException,
        yaml.YAMLError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path}: not a config of this version: {reason}; {way_out}") from error
    assert isinstance(cfg, SftConfig)
    return cfg


def flatten(cfg: SftConfig) -> dict[str, Any]:
    """Dotted key -> value of every leaf; used to compare two configs. A section that is null is a leaf."""
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, child in value.items():
                walk(child, f"{key}.{name}" if key else str(name))
        else:
            flat[key] = value

    walk(dataclasses.asdict(cfg), "")
    return flat


def _plain(value: Any) -> Any:
    """Enums by name; `${` in templates and prompts escaped, so that it is not read as an interpolation."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", value)
    return value
