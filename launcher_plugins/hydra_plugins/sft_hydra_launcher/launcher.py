"""Hydra sweeper and launcher plugins: all jobs of a sweep are composed and resolved before the first one starts.

Other modules of sft_hydra are imported inside the methods, because every Hydra application in the environment loads this
file.
"""

from collections.abc import Sequence
from typing import Any

# Imported here and not through hydra_internals: Hydra's plugin scan executes this module again, and a class that was imported
# before the scan fails in its `super(BasicSweeper, self)`.
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: TID251
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sft_hydra.config.hydra_internals import ConfigLoaderImpl


class SftSweeper(BasicSweeper):
    """Hydra's basic sweeper over all combinations, in one batch, without writing `multirun.yaml`."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Any:
        from sft_hydra.config.sweep_labels import kind_problem
        from sft_hydra.config.typed_text import quote_text
        from sft_hydra.errors import ConfigError

        assert self.hydra_context is not None
        assert self.config is not None
        if not isinstance(self.launcher, SftLauncher):  # it would run Hydra's task function, which only composes
            name = self.config.hydra.runtime.choices["hydra/launcher"]
            raise ConfigError(
                f"hydra/launcher={name} is not supported; use hydra/launcher=submitit_local or submitit_slurm"
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [quote_text(text) for text in self._parse_config()]
        overrides = parser.parse_overrides([*params, *arguments])
        loader = self.hydra_context.config_loader
        kinds = (
            kind_problem(override, bool(loader.get_group_options(override.key_or_group))) for override in overrides
        )
        if problems := [problem for problem in kinds if problem]:
            raise ConfigError(*problems)
        (jobs,) = self.split_arguments(overrides, max_batch_size=None)
        if not jobs:
            empty = ", ".join(str(override.input_line) for override in overrides if override.is_sweep_override())
            raise ConfigError(f"{empty}: no value matches, so there is no job to run")
        return self.launcher.launch(jobs, initial_job_idx=0)


class SftLauncher(Launcher):
    """`hydra/launcher=submitit_local` and `submitit_slurm`; `cluster` is `local` or `slurm`."""

    def __init__(self, cluster: str) -> None:
        self.name = f"submitit_{cluster}"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's config loader and the command's config."""
        self.loader = hydra_context.config_loader
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run or submit the jobs. Return values are the final losses of local jobs or the ids of Slurm jobs; exits with code
        1 if a job failed."""
        from sft_hydra.launch import local, slurm_run
        from sft_hydra.launch.sweep_jobs import compose_jobs, resolve_jobs

        assert isinstance(self.loader, ConfigLoaderImpl)
        composed = compose_jobs(self.loader, self.config, job_overrides)
        command = [str(text) for text in self.config.hydra.overrides.task]
        jobs = resolve_jobs(composed, job_overrides, command, self.name)
        on_slurm = self.name == "submitit_slurm"
        if all(job.cfg.dry_run for job in jobs):
            slurm_run.plan_jobs(jobs) if on_slurm else local.plan_jobs(jobs)
            return [_done(job.overrides, None) for job in jobs]
        if on_slurm:
            return [
                _done(job.overrides, handle.job_id) for job, handle in zip(jobs, slurm_run.run_jobs(jobs), strict=True)
            ]
        results = local.run_jobs(jobs)
        if any(result.exit_code for result in results):
            raise SystemExit(1)
        return [_done(result.job.overrides, result.loss) for result in results]


def _done(overrides: Sequence[str], value: float | str | None) -> JobReturn:
    job = JobReturn(overrides=overrides)
    job.return_value = value
    job.status = JobStatus.COMPLETED
    return job
