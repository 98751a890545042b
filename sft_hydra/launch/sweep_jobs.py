"""The jobs of a sweep, composed and resolved with a folder each; or one error with the problems of all jobs, before any job
starts."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from sft_hydra.config.hydra_internals import ConfigLoaderImpl
from sft_hydra.config.resolve import resolve
from sft_hydra.config.sweep_labels import distinct_labels, job_label, sweep_problem
from sft_hydra.data_prep.plan import options_of_set
from sft_hydra.errors import ConfigError
from sft_hydra.paths import RunPaths
from sft_hydra.planning.auto_parallel import with_auto_parallel
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import Prepare
from sft_hydra.schema.runners import Runner


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a sweep."""

    cfg: SftConfig
    overrides: list[str]
    label: str
    """Its folder name in the sweep's folder; empty without a sweep."""

    @property
    def paths(self) -> RunPaths:
        """Files of the job's run."""
        return RunPaths(Path(str(self.cfg.run_dir)))


def compose_jobs(loader: ConfigLoaderImpl, command: DictConfig, overrides: Sequence[Sequence[str]]) -> list[DictConfig]:
    """The config of each job, as Hydra composes it. Jobs with the same config groups share the composition, which takes most
    of the time; their value overrides are applied to copies with Hydra's code."""
    parse = OverridesParser.create().parse_override
    composed: dict[tuple[str, ...], DictConfig] = {}
    jobs = []
    for texts in overrides:
        parsed = {text: parse(text) for text in texts}
        groups = tuple(text for text in texts if loader.repository.group_exists(parsed[text].key_or_group))
        if groups not in composed:
            composed[groups] = loader.load_sweep_config(command, list(groups))
            with open_dict(composed[groups]):
                composed[groups].pop("hydra")
        job = copy.deepcopy(composed[groups])
        loader._apply_overrides_to_config([parsed[text] for text in texts if text not in groups], job)
        jobs.append(job)
    return jobs


def resolve_jobs(
    composed: Sequence[DictConfig], overrides: Sequence[Sequence[str]], command: Sequence[str], launcher: str
) -> list[Job]:
    """Resolve the composed configs. `overrides`: of each job; `command`: of the command line. ConfigError with the problems
    of all jobs."""
    swept = swept_keys(overrides, command)
    if problems := [problem for key in swept if (problem := sweep_problem(key))]:
        raise ConfigError(*problems)
    labels = distinct_labels([job_label(texts, swept) for texts in overrides], overrides)
    common_name = _common_name(composed)
    jobs, problems = [], []
    for config, texts, label in zip(composed, overrides, labels, strict=True):
        try:
            cfg = resolve(config, texts, launcher=launcher, default_name=common_name, label=label)
            jobs.append(Job(with_auto_parallel(cfg), list(texts), label))
        except ConfigError as error:
            problems += [f"{label}: {problem}" if label else problem for problem in error.problems]
    folders = Counter(str(job.paths.root) for job in jobs)
    problems += [
        f"{folder}: {count} jobs of this sweep have this folder; sweep over a key that changes it, or set name=..."
        for folder, count in folders.items()
        if count > 1
    ]
    problems += shared_folders([job.cfg for job in jobs])
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return jobs


def shared_folders(cfgs: Sequence[SftConfig]) -> list[str]:
    """Folders named by hand that several jobs would write: of checkpoints and exports always, of a packed set where the jobs
    ask for different ones."""
    folders: Counter[str] = Counter()
    packed: dict[str, set[str]] = {}
    for cfg in cfgs:
        if cfg.runner is Runner.train and cfg.checkpoint.save:
            folders[f"checkpoint.save={cfg.checkpoint.save}"] += 1
        if cfg.export.path and (cfg.runner is Runner.export or (cfg.runner is Runner.train and cfg.export.auto)):
            folders[f"export.path={cfg.export.path}"] += 1
        if (
            cfg.data.packed_dir
            and cfg.data.prepare is Prepare.auto
            and (cfg.data.path or cfg.data.blend or cfg.data.sources)
        ):
            packed.setdefault(f"data.packed_dir={cfg.data.packed_dir}", set()).add(options_of_set(cfg))
    problems = [
        f"{folder}: {count} jobs of this sweep would write it; leave it out, and each job has its own in its folder"
        for folder, count in folders.items()
        if count > 1
    ]
    return problems + [
        f"{folder}: the jobs of this sweep need {len(options)} different packed sets there; remove it, so that each set gets "
        "a folder of its own"
        for folder, options in packed.items()
        if len(options) > 1
    ]


def swept_keys(overrides: Sequence[Sequence[str]], typed: Sequence[str]) -> list[str]:
    """Keys that the sweep varies: keys of the jobs that do not have a single value on the command line (`typed`)."""
    parse = OverridesParser.create().parse_override
    single = {parsed.get_key_element() for parsed in map(parse, typed) if not parsed.is_sweep_override()}
    keys = (text.partition("=")[0] for texts in overrides for text in texts)
    return [key.lstrip("+") for key in dict.fromkeys(keys) if key not in single]


def _common_name(composed: Sequence[DictConfig]) -> str | None:
    """Name of the sweep's parent folder: the parts of `<model>-<data>-<peft>` that all jobs share. None for a single job."""
    if len(composed) < 2:
        return None
    parts = zip(*(_parts_of_name(config) for config in composed), strict=True)
    return "-".join(part[0] for part in parts if len(set(part)) == 1) or "sweep"


def _parts_of_name(composed: DictConfig) -> tuple[str, str, str]:
    model, data = (str(OmegaConf.select(composed, f"{section}.name")) for section in ("model", "data"))
    lora = "qlora" if OmegaConf.select(composed, "peft.quantize_base") else "lora"
    return model, data, "full" if composed.peft is None else lora
