"""Private imports from Hydra in one place, to be checked when Hydra is upgraded; a lint rule forbids others. The exception is
the base class of the sweeper, which Hydra's plugin scan must find in launcher_plugins/.

Hydra 1.3 offers no public way to build a config loader for several compositions, to parse its own flags, or to split the
arguments of a sweep into jobs.
"""

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path, get_args_parser

__all__ = [
    "ConfigLoaderImpl",
    "FileConfigSource",
    "SourcesRegistry",
    "create_config_search_path",
    "get_args_parser",
]
