"""What is typed for a field of text arrives letter by letter, from the command line and from YAML, and survives on disk."""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from sft_hydra.config import serialize
from sft_hydra.config.argv import normalize_argv
from sft_hydra.config.hydra_internals import ConfigLoaderImpl
from sft_hydra.config.schema_introspection import field_types
from sft_hydra.config.typed_text import quote_text, read_yaml
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import SourceConfig
from sft_hydra.schema.logger import LoggerConfig, MlflowConfig, TensorboardConfig, WandbConfig
from sft_hydra.schema.peft import LoraConfig

TRICKY = [
    "2024_11_26", "1e3", "12e4567", "2024_11", "12:00:00", "0012", "010", "yes", "No", "on", "OFF", "y", "true", "FALSE", "TrUe",
    "inf", "-inf", "NaN", ".inf", ".nan", "1_000", "+5", "-0", "0x1F", "0o17", "0b101", "1.", ".5", "1e-400", "2024-11-26",
    "2001-12-14t21:59:43.10-05:00", "1:30", "190:20:30.15", "007", "1.10", "5e", "0_0",
]  # fmt: skip
WORDS = st.sampled_from(TRICKY) | st.from_regex(
    r"[+-]?[0-9][0-9_]{0,3}(\.[0-9_]{0,3})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)


def everything() -> SftConfig:
    """A config in which every section is there."""
    logger = LoggerConfig(wandb=WandbConfig(), tensorboard=TensorboardConfig(), mlflow=MlflowConfig())
    cfg = SftConfig(peft=LoraConfig(), logger=logger)
    cfg.model.name = "m"
    cfg.data.sources = {"code": SourceConfig()}
    return cfg


def keys_of(section: Any, wanted: Any, prefix: str = "") -> Iterator[str]:
    for name, declared in field_types(type(section)).items():
        value = getattr(section, name)
        if declared == wanted:
            yield f"{prefix}{name}"
        elif dataclasses.is_dataclass(value):
            yield from keys_of(value, wanted, f"{prefix}{name}.")
        elif typing.get_origin(declared) is dict and value:
            for entry, child in value.items():
                yield from keys_of(child, wanted, f"{prefix}{name}.{entry}.")


TEXTS = list(keys_of(everything(), str))
LISTS = list(keys_of(everything(), list[str]))
MAPPINGS = list(keys_of(everything(), dict[str, str]))


def after(*overrides: str) -> DictConfig:
    """A config with overrides put in as Hydra puts them in."""
    config = OmegaConf.structured(everything())
    implied = ("model=hf", "model.path=null", "peft=lora")  # choices of groups, which are made before values are put in
    texts = [text for text in normalize_argv(overrides) if text not in implied or text in overrides]
    parsed = OverridesParser.create().parse_overrides(texts)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    return config


@given(st.sampled_from(TEXTS), WORDS)
@settings(max_examples=20, deadline=None)
def test_a_text_on_the_command_line(key: str, text: str) -> None:
    assert OmegaConf.select(after(f"{key}={text}"), key) == text
    name = key.replace("code", "other")
    assert OmegaConf.select(after(f"++{name}={text}"), name) == text


@given(st.sampled_from(LISTS), st.lists(WORDS, min_size=1, max_size=3))
@settings(max_examples=12, deadline=None)
def test_texts_in_a_list(key: str, texts: list[str]) -> None:
    assert OmegaConf.select(after(f"{key}=[{', '.join(texts)}]"), key) == texts


@given(st.sampled_from(MAPPINGS), WORDS, WORDS)
@settings(max_examples=12, deadline=None)
def test_texts_in_a_mapping(key: str, one: str, other: str) -> None:
    assert OmegaConf.select(after(f"{key}={{A: {one}, B: {other}}}"), key) == {"A": one, "B": other}
    assert OmegaConf.select(after(f"+{key}.C={one}"), f"{key}.C") == one


@given(WORDS, WORDS)
@settings(max_examples=12, deadline=None)
def test_each_value_of_a_sweep(one: str, other: str) -> None:
    for text in (f"name={one},{other}", f"name=choice({one}, {other})"):
        swept = OverridesParser.create().parse_override(quote_text(text))
        values = list(swept.sweep_string_iterator())
        assert [OmegaConf.select(after(f"name={each}"), "name") for each in values] == [one, other]


@given(st.sampled_from(TEXTS), WORDS)
@settings(max_examples=20, deadline=None)
def test_a_text_in_yaml(key: str, text: str) -> None:
    parts = key.split(".")
    nested = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts[:-1]))
    whole = read_yaml(f"{nested}{'  ' * (len(parts) - 1)}{parts[-1]}: {text}\n")
    inside = read_yaml(f"{parts[-1]}: {text}\n", ".".join(parts[:-1]))
    assert OmegaConf.select(OmegaConf.create(whole), key) == inside[parts[-1]] == text


@given(WORDS)
@settings(max_examples=20, deadline=None)
def test_a_text_on_disk(text: str) -> None:
    cfg = everything()
    cfg.name, cfg.cluster.env, cfg.generate.prompts = text, {"A": text}, [text]
    assert OmegaConf.create(yaml.safe_load(serialize.dump(cfg))).name == text
    again = OmegaConf.create(serialize.dump(cfg))
    assert (again.name, again.cluster.env.A, again.generate.prompts[0]) == (text, text, text)


@pytest.mark.parametrize(
    ("text", "value"), [("seq_length=1_000", 1000), ("optimizer.lr=1e-3", 0.001), ("train.compile=TRUE", True),
                        ("name=null", None), ("name='1e3'", "1e3"), ("+model.architecture.a=1e3", 1000.0)],
)  # fmt: skip
def test_numbers_stay_numbers_and_null_stays_null(text: str, value: object) -> None:
    config = OmegaConf.structured(everything())
    with open_dict(config):
        ConfigLoaderImpl._apply_overrides_to_config(
            OverridesParser.create().parse_overrides(normalize_argv([text])), config
        )
    assert OmegaConf.select(config, text.lstrip("+").partition("=")[0]) == value


def test_numbers_in_yaml_are_those_of_the_command_line() -> None:
    assert read_yaml("seed: 010")["seed"] == "010"  # which the schema makes 10, as it does of seed=010
    assert read_yaml("seq_length: 1:30")["seq_length"] == "1:30"  # and refuses


PROFILE = """\
# @package _global_
name: 2024_11_26
seq_length: 1_024
cluster: {time: 12:00:00, account: 0012, env: {A: yes, C: 010}}
model: {revision: 12e4567, architecture: {rope_theta: 1e6}}
"""


def test_files_of_all_ways(
    empty_folder: Path, resolved: Callable[..., SftConfig], problems: Callable[..., list[str]]
) -> None:
    """An experiment by its path, and one in a folder of options (whose composition is seen in what is refused)."""
    (empty_folder / "mine.yaml").write_text(PROFILE)
    cfg = resolved("experiment=mine.yaml", "logger=wandb", "logger.wandb.project=2024_11")
    assert (cfg.name, cfg.seq_length, cfg.cluster.time, cfg.cluster.account) == ("2024_11_26", 1024, "12:00:00", "0012")
    assert (cfg.cluster.env, cfg.model.revision) == ({"A": "yes", "C": "010"}, "12e4567")
    assert cfg.model.architecture["rope_theta"] == 1e6
    assert cfg.logger.wandb is not None
    assert cfg.logger.wandb.project == "2024_11"
    folder = empty_folder / "options" / "cluster"
    folder.mkdir(parents=True)
    (folder / "site.yaml").write_text('env: {A-B: yes}\npartition: 1_0\nsbatch_args: ["1\\n2", off]\n')
    found = problems("--config-dir", "options", "cluster=site", "dry_run=true")
    assert "cluster.sbatch_args=['1\\n2', 'off'] must be one line" in found
