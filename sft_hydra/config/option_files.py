"""Reads the YAML files that Hydra composes by declared types, and checks that those of users contain only values.

Hydra searches `conf/` first, so a user's file with the name of one of ours would never be read; it is an error.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from sft_hydra.config.hydra_internals import FileConfigSource, SourcesRegistry
from sft_hydra.config.peer_files import refuse_peer_file
from sft_hydra.config.typed_text import read_yaml
from sft_hydra.config.values_only import experiment_problems, option_problems
from sft_hydra.errors import ConfigError
from sft_hydra.paths import conf_dir


class OptionFiles(FileConfigSource):
    """Hydra's source for a config folder, with values read by declared types."""

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of a file. ConfigError for a user's file with anything but values."""
        name = self._normalize_file_name(config_path)
        file = Path(self.path, name)
        if not file.is_file():
            raise ConfigLoadError(f"Config not found : {file}")
        text = file.read_text(encoding="utf-8")
        header = ConfigSource._get_header_dict(text[:512])
        group = Path(name).parent.as_posix().replace("/", ".").strip(".")
        package = (header.get("package") or group).replace("_global_", "").replace("_group_", group).strip(".")
        content = read_yaml(text, package)
        if not file.resolve().is_relative_to(conf_dir().resolve()) and isinstance(content, dict):
            whole: Any = content
            for part in reversed(package.split(".") if package else []):
                whole = {part: whole}
            if group.startswith("experiment"):
                refuse_peer_file(content, str(file))
            check = experiment_problems if group.startswith("experiment") else option_problems
            if problems := list(check(whole)):
                raise ConfigError(*(f"{file}: {problem}" for problem in problems))
        return ConfigResult(
            config=OmegaConf.create(content),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=header,
        )


@contextmanager
def option_files_read() -> Iterator[None]:
    """Context in which Hydra reads config folders through OptionFiles."""
    Plugins.instance()  # scans, and so registers Hydra's own sources
    types = SourcesRegistry.instance().types
    before = types["file"]
    types["file"] = OptionFiles
    try:
        yield
    finally:
        types["file"] = before


def hidden_files(folders: Iterable[str]) -> Iterator[str]:
    """Messages for files in a user's folders that would never be read, because one of ours has the same name."""
    for folder in folders:
        for ours in sorted(conf_dir().rglob("*.yaml")):
            name = ours.relative_to(conf_dir())
            users_file = Path(folder, name)
            if users_file.is_file() and not users_file.samefile(ours):
                group, option = name.parent.as_posix(), name.stem
                example = f"{group}/my_{option}.yaml" if name.parent.name else f"experiment/my_{option}.yaml"
                extends = f", with `defaults: [{option}, _self_]` to start from ours" if name.parent.name else ""
                yield (
                    f"{users_file}: would never be read, because sft_hydra has a file {name}; rename it, "
                    f"e.g. to {example}{extends}"
                )
