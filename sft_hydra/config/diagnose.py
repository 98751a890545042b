"""Finds all problems of a command line at once: Hydra stops at the first, so each override is tried on its own.

Runs only after Hydra has failed (half a second for ten problems).
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft_hydra.config.aliases import peer_answer
from sft_hydra.config.argv import PEERS_VALUE, split_flags
from sft_hydra.config.hydra_internals import ConfigLoaderImpl, create_config_search_path, get_args_parser
from sft_hydra.config.resolve import resolve
from sft_hydra.config.schema_introspection import declared_type, describe_type, hint, key_problem, leaves, undeclared
from sft_hydra.config.sweep_labels import kind_problem, sweep_problem
from sft_hydra.config.values_only import hydra_problem
from sft_hydra.errors import ConfigError
from sft_hydra.paths import conf_dir

REFUSALS = (HydraException, OmegaConfBaseException, ValueError, AssertionError)


def diagnose(arguments: Sequence[str]) -> list[str]:
    """Messages for all problems of normalized arguments; empty if none is found."""
    flags, texts = split_flags(arguments)
    problems = [_flag_problem(flag) for flag in unknown_flags(arguments)]
    folders = users_folders(arguments)
    problems += [f"{folder}: no such config folder" for folder in folders if not Path(folder).is_dir()]
    loader = _config_loader([folder for folder in folders if Path(folder).is_dir()])
    overrides: list[Override] = []
    for text in texts:
        try:
            overrides.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            problems.append(_unreadable(text, error))
    multirun = "-m" in flags or "--multirun" in flags
    groups = [override for override in overrides if loader.repository.group_exists(override.key_or_group)]
    values = [override for override in overrides if override not in groups]
    composed, group_problems = _compose_groups(loader, groups)
    problems += group_problems
    if composed is None:
        return problems
    multirun = multirun or composed.hydra.mode is RunMode.MULTIRUN
    kinds = {id(override): kind_problem(override, override in groups) for override in overrides}
    problems += [problem for problem in kinds.values() if problem]
    overrides = [override for override in overrides if not kinds[id(override)]]
    for override in overrides:
        problems += _sweep_problems(override, multirun)
    for override in values:
        if override in overrides:
            problems += _value_problems(override, composed)
    return problems + _rule_problems(composed, texts)


def unknown_flags(arguments: Sequence[str]) -> list[str]:
    known = {option for action in get_args_parser()._actions for option in action.option_strings} - {
        "--experimental-rerun"
    }
    return [
        flag
        for flag in split_flags(arguments)[0]
        if flag.startswith("-") and (flag.partition("=")[0] not in known or PEERS_VALUE.match(flag))
    ]


def _flag_problem(flag: str) -> str:
    name, _, value = flag.partition("=")
    answer = peer_answer(name, value or None)
    if answer and answer.why:
        return f"{name}: unknown flag; {answer}"
    return (
        f"{name}: unknown flag; settings are written key=value, here {answer.line if answer else 'optimizer.lr=1e-4'}"
    )


def _config_loader(folders: Sequence[str]) -> ConfigLoaderImpl:
    """Finds options where Hydra does: in `conf/`, in the user's folders, among the registered schemas."""
    search_path = create_config_search_path(str(conf_dir()))
    for folder in folders:
        search_path.prepend("user", f"file://{Path(folder).absolute()}", SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(search_path)


def users_folders(arguments: Sequence[str]) -> list[str]:
    """Folders of `--config-dir` and `hydra.searchpath`."""
    flags, texts = split_flags(arguments)
    folders = [value for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    folders += [flag.partition("=")[2] for flag in flags if flag.startswith("--config-dir=")]
    for text in texts:
        if text.startswith("hydra.searchpath="):
            folders += re.findall(r"file://([^,\]'\"]+)", text)
    return folders


def _unreadable(text: str, error: HydraException) -> str:
    if "=" not in text and not text.startswith("~"):
        return f"{text}: not an override; settings are written key=value, e.g. runner=train"
    key, _, value = text.partition("=")
    quoted = f'\'{key}=["...", "..."]\'' if value.startswith("[") else f"\"{key}='...'\""
    return f"{text}: cannot be parsed ({str(error).splitlines()[0]}); quote text with special characters: {quoted}"


def _compose_groups(loader: ConfigLoaderImpl, groups: Sequence[Override]) -> tuple[DictConfig | None, list[str]]:
    """Compose with the group choices that are valid; the others become problems."""
    problems: list[str] = []
    choices: list[str] = []
    for override in groups:
        found = list(_option_problems(loader, override))
        problems += found
        if not found:
            choices.append(str(_singles(override)[0].input_line))
    try:
        return _load(loader, choices), problems
    except REFUSALS as error:
        first = error
    return _compose_one_by_one(loader, choices, problems, first)


def _compose_one_by_one(
    loader: ConfigLoaderImpl, choices: Sequence[str], problems: list[str], first: BaseException
) -> tuple[DictConfig | None, list[str]]:
    """Drop each choice that does not compose with those before it."""
    good: list[str] = []
    refused: list[BaseException] = []
    try:
        composed = _load(loader, good)
    except REFUSALS:  # not the command: the root config itself
        return None, [*problems, *_yaml_problems(loader, first, None)]
    for choice in choices:
        try:
            composed = _load(loader, [*good, choice])
            good.append(choice)
        except REFUSALS as error:
            refused.append(error)
    for refusal in refused:
        problems += _yaml_problems(loader, refusal, composed)
    return composed, problems


def _load(loader: ConfigLoaderImpl, choices: list[str]) -> DictConfig:
    return loader.load_configuration("config", choices, RunMode.RUN)


def _option_problems(loader: ConfigLoaderImpl, override: Override) -> Iterator[str]:
    group = override.key_or_group
    for value in _elements(override):
        for option in value if isinstance(value, list) else [value]:
            if override.is_delete() or loader.repository.config_exists(f"{group}/{option}"):
                continue
            options = loader.get_group_options(group)
            near = difflib.get_close_matches(str(option), options, n=1)
            nearest = f"did you mean {near[0]}? " if near else ""
            shown = "null" if option is None else option
            yield f"{group}={shown}: no such option; {nearest}{group} has: {', '.join(options)}"


def _yaml_problems(loader: ConfigLoaderImpl, error: BaseException, composed: DictConfig | None) -> list[str]:
    """Problems of the YAML file in Hydra's error: all its unknown keys and wrong values, else Hydra's message."""
    text = str(error) or str(error.__cause__)
    file = re.match(r"In '([^']+)'", text)
    if wanted := re.search(
        r"Could not (?:find|load) '([\w/]+)/(\w+)'", text
    ):  # in `defaults` of a file that Hydra does not name
        options = ", ".join(loader.get_group_options(wanted[1]))
        return [
            f"a file's `defaults` choose {wanted[1]}: {wanted[2]}, which does not exist; {wanted[1]} has: {options}"
        ]
    loaded = loader.repository.load_config(file[1]) if file else None
    if file is None or loaded is None or composed is None or not isinstance(loaded.config, DictConfig):
        return [" ".join(text.split())]
    package = (loaded.header.get("package") or "").replace("_global_", "")
    own = OmegaConf.masked_copy(
        loaded.config, [str(name) for name in loaded.config if name not in ("defaults", "hydra")]
    )
    problems = [f"{found.key}: {hint(found)}" for found in undeclared(own, package)]
    for key, value in leaves(own, package):
        if not key_problem(key, composed):
            try:
                OmegaConf.update(composed, key, value)
            except OmegaConfBaseException:
                problems.append(f"{key}={value} is not {describe_type(declared_type(key, composed))}")
    users_own = Path(f"/{file[1].removeprefix('experiment/')}.yaml")  # as normalise.option_of_file made it
    name = users_own if users_own.is_file() else f"{file[1]}.yaml"
    return [f"{name}: {problem}" for problem in problems or [" ".join(text.split())]]


def _sweep_problems(override: Override, multirun: bool) -> Iterator[str]:
    if not override.is_sweep_override():
        return
    if problem := sweep_problem(override.key_or_group):
        yield problem
    elif not multirun:
        key, _, value = str(override.input_line).partition("=")
        yield f"{key}={value} is a sweep: add -m; a list is written {key}=[{value}], a text with a comma \"{key}='{value}'\""


def _value_problems(override: Override, composed: DictConfig) -> Iterator[str]:
    """Apply each value to the composed config as Hydra would; invalid values change nothing."""
    key = override.key_or_group
    if key.split(".")[0] == "hydra":
        if problem := hydra_problem(key):
            yield problem
        return
    for single in _singles(override):
        adds_entry = (single.is_add() or single.is_force_add()) and _is_open(key, composed)
        if not adds_entry and (problem := key_problem(key, composed, str(single.input_line).partition("=")[2])):
            yield problem
            return
        try:
            ConfigLoaderImpl._apply_overrides_to_config([single], composed)
        except REFUSALS as error:
            yield _wrong_value(key, single, composed, error)


def _is_open(key: str, composed: DictConfig) -> bool:
    """Whether the key is an entry of a mapping that takes any name."""
    parent = key.rpartition(".")[0]
    return bool(parent) and OmegaConf.get_type(OmegaConf.select(composed, parent)) is dict


def _wrong_value(key: str, override: Override, composed: DictConfig, error: BaseException) -> str:
    text = override.get_value_element_as_str()
    declared = declared_type(key, composed)
    if override.is_delete() or declared is Any:
        return f"{override.input_line}: {' '.join(str(error.__cause__ or error).split())}"
    return f"{key}={text} is not {describe_type(declared)}{_number_hint(key, text, declared)}"


def _number_hint(key: str, text: str, declared: Any) -> str:
    if declared is int and (match := re.fullmatch(r"(\d+)[kK]", text)):
        return f"; write {key}={int(match[1]) * 1024} (or {int(match[1]) * 1000})"
    if declared is int and re.fullmatch(r"[\d.]+([eE]\+?\d+)?", text) and float(text) == int(float(text)):
        return f"; write {key}={int(float(text))}"
    return ""


def _rule_problems(composed: DictConfig, texts: Sequence[str]) -> list[str]:
    launcher = str(composed.hydra.runtime.choices["hydra/launcher"])
    with open_dict(composed):
        del composed["hydra"]
    try:
        resolve(
            composed, texts, launcher=launcher, compare=False
        )  # a config without the invalid parts is not compared with the run
    except ConfigError as error:
        return error.problems
    return []


def _elements(override: Override) -> list[Any]:
    return [single.value() for single in _singles(override)]


def _singles(override: Override) -> list[Override]:
    """One override for each value of a sweep."""
    if not override.is_sweep_override():
        return [override]
    key = override.get_key_element()
    return OverridesParser.create().parse_overrides([f"{key}={value}" for value in override.sweep_string_iterator()])
