"""Composition with Hydra: argv -> one config, or Hydra's own output (`--help`, `--cfg job`), or a sweep through our launcher.

The run itself does not happen inside Hydra, so its exceptions keep their traceback.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft_hydra.config.argv import experiment_files, normalize_argv, split_flags
from sft_hydra.config.diagnose import diagnose, unknown_flags, users_folders
from sft_hydra.config.option_files import hidden_files, option_files_read
from sft_hydra.config.store import register
from sft_hydra.config.values_only import hydra_problem
from sft_hydra.errors import ConfigError
from sft_hydra.paths import conf_dir

CONFIG_NAME = "config"


@dataclass(frozen=True, slots=True)
class Composed:
    """A composed config, not yet checked, with the overrides it came from."""

    config: DictConfig
    overrides: list[str]  # of the command line, as Hydra read them
    launcher: str  # chosen option of hydra/launcher
    swept: bool


def compose(argv: Sequence[str]) -> Composed | None:
    """The composed config; None if Hydra printed its own output or ran a sweep. ConfigError lists all problems."""
    arguments = normalize_argv(argv)
    register(experiment_files(argv))
    hidden = list(hidden_files(users_folders(arguments)))
    if hidden or unknown_flags(arguments) or any(map(hydra_problem, _keys(arguments))):
        with option_files_read():
            raise ConfigError(*hidden, *diagnose(arguments))
    composed: list[Composed] = []

    def keep(config: DictConfig) -> None:
        info = HydraConfig.get()
        launcher = str(info.runtime.choices["hydra/launcher"])
        composed.append(Composed(config, list(info.overrides.task), launcher, info.mode is RunMode.MULTIRUN))

    with _hydra_environment(arguments), option_files_read():
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)(keep)()
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
            problems = diagnose(arguments)
            if not problems and not isinstance(error, HydraException | OmegaConfBaseException):
                raise
            raise ConfigError(*(problems or [str(error)])) from None
    if composed and composed[0].swept:  # another plugin's sweeper with another plugin's launcher
        raise ConfigError(
            f"hydra/launcher={composed[0].launcher} cannot run our jobs; use submitit_local or submitit_slurm"
        )
    return composed[0] if composed else None


def compose_overrides(overrides: Sequence[str]) -> Composed:
    """One config from `key=value` overrides, for use in a Python program: no flags, no sweep, sys.argv is not read.
    ConfigError lists all problems."""
    if flags := [text for text in overrides if text.startswith("-")]:
        raise ConfigError(
            f"{', '.join(flags)}: command-line flags are not accepted here; use group=option and key=value"
        )
    arguments = normalize_argv(overrides)
    register(experiment_files(overrides))
    if any(map(hydra_problem, _keys(arguments))):
        with option_files_read():
            raise ConfigError(*diagnose(arguments))
    try:
        with option_files_read(), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = hydra.compose(CONFIG_NAME, arguments, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(*(diagnose(arguments) or [str(error)])) from None
    launcher, task = str(config.hydra.runtime.choices["hydra/launcher"]), list(config.hydra.overrides.task)
    with open_dict(config):
        del config["hydra"]
    return Composed(config, task, launcher, swept=False)


def _keys(arguments: Sequence[str]) -> list[str]:
    return [text.partition("=")[0] for text in split_flags(arguments)[1]]


@contextmanager
def _hydra_environment(arguments: Sequence[str]) -> Iterator[None]:
    """Sets sys.argv, which Hydra reads, and HYDRA_FULL_ERROR, without which Hydra hides exceptions."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["sft_hydra", *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
