"""The YAML files that Hydra composes: read so that text stays text, and, where they are a user's, checked for what they may do.

Hydra looks for a file in `conf/` first, so a user's file with the same name would never be read: it is refused.
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
    """A folder of options, as Hydra's own source of that kind, read by declared types."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Raises ConfigError for a user's file that holds more than values."""
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
    """Inside, Hydra reads folders of options through OptionFiles."""
    Plugins.instance()  # scans, and so registers Hydra's own sources
    types = SourcesRegistry.instance().types
    before = types["file"]
    types["file"] = OptionFiles
    try:
        yield
    finally:
        types["file"] = before


def hidden_files(folders: Iterable[str]) -> Iterator[str]:
    """Problems of files in a user's folders that would never be read, because one of ours has the same name."""
    for folder in folders:
        for ours in sorted(conf_dir().rglob("*.yaml")):
            name = ours.relative_to(conf_dir())
            theirs = Path(folder, name)
            if theirs.is_file() and not theirs.samefile(ours):
                group, option = name.parent.as_posix(), name.stem
                example = f"{group}/my_{option}.yaml" if name.parent.name else f"experiment/my_{option}.yaml"
                extends = f", with `defaults: [{option}, _self_]` to start from ours" if name.parent.name else ""
                yield (
                    f"{theirs}: would not be read, because {name} comes with sft_hydra; give it a name of its own, "
                    f"for instance {example}{extends}"
                )
