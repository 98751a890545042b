"""The jobs of a sweep: each resolved and given its folder, or all problems of all jobs together and nothing started."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from sft_hydra.config.resolve import name_parts, resolve, to_dataclasses
from sft_hydra.config.schema import SftConfig
from sft_hydra.config.sweep import distinct_labels, job_label, sweep_problem
from sft_hydra.errors import ConfigError
from sft_hydra.launch.planner import planned
from sft_hydra.paths import RunPaths


@dataclass(frozen=True, slots=True)
class Job:
    cfg: SftConfig
    overrides: list[str]
    label: str

    @property
    def paths(self) -> RunPaths:
        return RunPaths(Path(str(self.cfg.run_dir)))


def resolve_jobs(
    composed: Sequence[DictConfig], overrides: Sequence[Sequence[str]], given: Sequence[str], launcher: str
) -> list[Job]:
    """`overrides` are those of each job, `given` those of the command line. Raises ConfigError, problems by job."""
    swept = swept_keys(overrides, given)
    if problems := [problem for key in swept if (problem := sweep_problem(key))]:
        raise ConfigError(*problems)
    for config in composed:
        with open_dict(config):
            config.pop("hydra", None)
    labels = distinct_labels([job_label(texts, swept) for texts in overrides], overrides)
    common_name = _common_name(composed)
    jobs, problems = [], []
    for config, texts, label in zip(composed, overrides, labels, strict=True):
        try:
            cfg = resolve(config, texts, launcher=launcher, default_name=common_name, label=label)
            jobs.append(Job(planned(cfg), list(texts), label))
        except ConfigError as error:
            problems += [f"{label}: {problem}" if label else problem for problem in error.problems]
    folders = Counter(str(job.paths.root) for job in jobs)
    problems += [
        f"{folder}: {count} jobs of this sweep share this folder" for folder, count in folders.items() if count > 1
    ]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return jobs


def swept_keys(overrides: Sequence[Sequence[str]], given: Sequence[str]) -> list[str]:
    """Keys that the sweep varies: those of the jobs that the command line gives no single value."""
    parse = OverridesParser.create().parse_override
    single = {parsed.get_key_element() for parsed in map(parse, given) if not parsed.is_sweep_override()}
    keys = (text.partition("=")[0] for texts in overrides for text in texts)
    return [key.lstrip("+") for key in dict.fromkeys(keys) if key not in single]


def _common_name(composed: Sequence[DictConfig]) -> str | None:
    """The parent folder of a sweep: what all jobs agree on of `<model>-<data>-<peft>`. None for a sweep of one."""
    configs = [cfg for config in composed if (cfg := to_dataclasses(config)[0]) is not None]
    if len(configs) < 2:
        return None
    parts = zip(*(name_parts(cfg) for cfg in configs), strict=True)
    return "-".join(part[0] for part in parts if len(set(part)) == 1) or "sweep"
