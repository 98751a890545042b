"""Every private import from Hydra but one, so that an upgrade of Hydra is checked in one place (a lint rule holds the rest to it).
The base class of the sweeper must be imported where Hydra's plugin scan sees it: in launcher_plugins/.

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
