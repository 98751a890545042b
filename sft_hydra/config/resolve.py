"""From Hydra's composed config to a resolved SftConfig: checked by all rules, with name and folder filled in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_hydra.config.adapter import adopt_adapter
from sft_hydra.config.from_checkpoint import inherit
from sft_hydra.config.gpus import gpus_here, with_gpus
from sft_hydra.config.resume_compat import inherit_run_config, resume_problems
from sft_hydra.config.rules import broken_rules
from sft_hydra.config.rules_files import packed_length
from sft_hydra.config.schema_introspection import hint, is_filled, unknown_keys
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.ranges import outside, put_in_range

# Overrides that keep the run name `demo`: what is done with the demo, and where.
DEMO_KEYS = ("runner", "dry_run", "output_dir", "device", "eval", "generate", "export", "inspect")


def resolve(
    composed: DictConfig,
    overrides: Sequence[str] = (),
    *,
    launcher: str = "submitit_local",
    default_name: str | None = None,
    label: str = "",
    compare: bool = True,
) -> SftConfig:
    """The config that runs. ConfigError lists all problems at once.

    `overrides`: those of the command line; `default_name`: the run's name if `name` is not set; `label`: the folder of a
    sweep's job below it; `compare`: check that the run in the folder can be resumed.
    """
    unknown = [found.key for found in unknown_keys(composed)]
    cfg, problems = to_dataclasses(composed)
    if cfg is None:
        raise ConfigError(*problems)
    if launcher != f"submitit_{cfg.cluster.kind.value}":
        problems.append(
            f"hydra/launcher={launcher} conflicts with cluster.kind={cfg.cluster.kind.value}; set only cluster=local or "
            "cluster=slurm (a profile of your own starts with `defaults: [slurm]`)"
        )
    typed = [key for text in overrides if not _within(key := text.lstrip("+~").partition("=")[0], unknown)]
    if "seq_length" not in typed:
        cfg.seq_length = _length_of_set(cfg) or cfg.seq_length
    cfg = with_gpus(cfg, gpus_here())
    problems += adopt_adapter(cfg, typed)
    cfg.name = cfg.name or default_name or run_name(cfg, typed)
    cfg.run_dir = str(Path(cfg.output_dir) / cfg.name / label)
    cfg, contradictions = inherit_run_config(cfg, typed)
    problems += contradictions
    problems += _range_and_rule_problems(cfg)
    if compare and not problems:
        problems += resume_problems(cfg)
    if problems:
        raise ConfigError(*problems)
    return cfg


def _range_and_rule_problems(cfg: SftConfig) -> list[str]:
    """Numbers outside their ranges, and the messages of all rules for the other keys: such a number is replaced by its default,
    and messages about that default are dropped."""
    wrong = list(outside(cfg))
    for section, name, _ in wrong:
        put_in_range(section, name)
    problems = [problem for _, _, problem in wrong]
    keys = [problem.partition("=")[0] for problem in problems]
    keys += [f"{key.rpartition('.')[0]}:" for key in keys if "." in key]  # messages about the section as a whole
    others = broken_rules(cfg)
    return problems + [problem for problem in others if not any(key in problem for key in keys)]


def _within(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or other.startswith(f"{key}.") for other in keys)


def _length_of_set(cfg: SftConfig) -> int | None:
    """`seq_length` of an existing packed set, if the command does not set it."""
    try:
        return packed_length(cfg.data.packed_dir)
    except ValueError:
        return None  # a rule reports it


def name_parts(cfg: SftConfig) -> tuple[str, str, str]:
    """(model, data, peft) of the default run name."""
    lora = "qlora" if cfg.peft is not None and cfg.peft.quantize_base else "lora"
    return cfg.model.name, cfg.data.name, "full" if cfg.peft is None else lora


def run_name(cfg: SftConfig, typed: Sequence[str]) -> str:
    """`demo` for the pure default, else `<model>-<data>-<peft>`."""
    if all(key.partition(".")[0] in DEMO_KEYS for key in typed):
        return "demo"
    return "-".join(name_parts(cfg))


def to_dataclasses(composed: DictConfig) -> tuple[SftConfig | None, list[str]]:
    """(config, messages about keys and values). Unknown keys are removed from `composed`, so that the rules can still run, and
    null values that are known elsewhere are filled in."""
    unknown = list(unknown_keys(composed))
    problems = [f"{found.key}: {hint(found)}" for found in unknown]
    for section, name in {(found.section, found.name) for found in unknown}:
        parent: Any = OmegaConf.select(composed, section) if section else composed
        parent._content.pop(name)  # typed sections do not support deletion
    problems += [f"{key}: _target_ is not supported: a config holds values, not code" for key in _targets(composed)]
    try:
        problems += inherit(composed)
        for key in sorted(OmegaConf.missing_keys(composed)):
            problems.append(f"{key} has no value; set {key}=...")
            OmegaConf.update(composed, key, "missing")
        cfg = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        return None, [*problems, f"{error.full_key}: {str(error).splitlines()[0]}"]
    assert isinstance(cfg, SftConfig)
    return cfg, problems


def _targets(node: Any, path: str = "") -> list[str]:
    """Paths of every `_target_`, in sections that take any key."""
    if is_filled(node):
        found = [path or "the top level"] if "_target_" in node else []
        return found + [key for name in node for key in _targets(node._get_node(name), f"{path}.{name}".lstrip("."))]
    if OmegaConf.is_list(node) and isinstance(node._content, list):
        return [key for i in range(len(node)) for key in _targets(node._get_node(i), f"{path}[{i}]")]
    return []
