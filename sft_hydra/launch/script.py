"""The batch script of Slurm jobs, as text. Writes no files and calls no commands.

Sets the resources that a job requests and how its ranks start; `job.sh.jinja` is the template of the script. Runs with the
same resources share one script and become one job array.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from sft_hydra.paths import RunPaths
from sft_hydra.planning.topology import ranks_of_runner
from sft_hydra.schema.config import Device, SftConfig
from sft_hydra.schema.runners import Runner

WITHOUT_GPU = (Runner.data_prep, Runner.inspect)


@dataclass(frozen=True, slots=True)
class BatchScript:
    """One batch script and the runs that it starts."""

    text: str
    cfgs: Sequence[SftConfig]
    folder: Path
    """Folder for the script and its output: `slurm/` of the run or, for an array, beside its runs."""

    @property
    def is_array(self) -> bool:
        """Whether it is submitted as a job array."""
        return len(self.cfgs) > 1


def batch_scripts(cfgs: Sequence[SftConfig], dependents: Sequence[SftConfig] = ()) -> list[BatchScript]:
    """One script for all runs that differ only in their folder, in the order of the runs. `dependents` get an entry in their
    log if one of these runs fails."""
    groups: dict[str, list[SftConfig]] = {}
    for cfg in cfgs:
        groups.setdefault(_render([cfg]).replace(str(run_folder(cfg)), ""), []).append(cfg)
    return [BatchScript(_render(group, dependents), group, script_folder(group)) for group in groups.values()]


def run_folder(cfg: SftConfig) -> Path:
    """Absolute folder of a run."""
    assert cfg.run_dir is not None
    return Path(cfg.run_dir).resolve()


def script_folder(cfgs: Sequence[SftConfig]) -> Path:
    """Folder of a batch script, see `BatchScript.folder`."""
    run = run_folder(cfgs[0])
    return RunPaths(run if len(cfgs) == 1 else run.parent).slurm


@dataclass(frozen=True, slots=True)
class Allocation:
    """Nodes, tasks and GPUs that a job requests."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int


def allocation(cfg: SftConfig) -> Allocation:
    """The allocation that the runner uses."""
    nodes, tasks = ranks_of_runner(cfg)
    on_cpu = cfg.device is Device.cpu or cfg.runner in WITHOUT_GPU
    return Allocation(nodes, tasks, 0 if on_cpu else tasks)


def _render(cfgs: Sequence[SftConfig], dependents: Sequence[SftConfig] = ()) -> str:
    cfg = cfgs[0]
    cluster = cfg.cluster
    return _template().render(
        options=_sbatch_options(cfgs),
        runs=[str(run_folder(each)) for each in cfgs],
        config=RunPaths(run_folder(cfg)).config(cfg.runner.value).name,
        checkpoints=shlex.quote(str(Path(cfg.checkpoint.save).resolve()))
        if cfg.checkpoint.save
        else "$run/checkpoints",
        environment=list(cluster.env.items()),
        setup=cluster.setup,
        folder=str(script_folder(cfgs)),
        dependents=[str(run_folder(each)) for each in dependents],
        stop_seconds=cluster.stop_seconds,
        srun=shlex.join(["srun", *_srun_options(cfg)]),
        tasks_per_node=allocation(cfg).tasks_per_node,
        python=shlex.quote(cluster.python or ("python" if cluster.container_image else sys.executable)),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("sft_hydra.launch", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template("job.sh.jinja")


def _sbatch_options(cfgs: Sequence[SftConfig]) -> list[str]:
    cfg = cfgs[0]
    cluster, resources, array = cfg.cluster, allocation(cfg), len(cfgs) > 1
    options: dict[str, object] = {
        "job-name": cfg.name,
        "nodes": resources.nodes,
        "ntasks-per-node": resources.tasks_per_node,
        "gpus-per-node": resources.gpus_per_node or None,
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.mem,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "reservation": cluster.reservation,
        "time": cluster.time,
        "chdir": Path.cwd(),
        "output": str(script_folder(cfgs)).replace("%", "%%") + ("/%A_%a.txt" if array else "/%j.txt"),
        "open-mode": "append",
        "signal": f"B:USR2@{cluster.stop_seconds}",
    }
    if array:
        limit = f"%{cluster.max_parallel}" if cluster.max_parallel else ""
        options["array"] = f"0-{len(cfgs) - 1}{limit}"
    arguments = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    flags = ["--requeue", *(["--exclusive"] if cluster.exclusive else [])]
    return [*arguments, *flags, *cluster.sbatch_args]


def _srun_options(cfg: SftConfig) -> list[str]:
    cluster = cfg.cluster
    options = ["--kill-on-bad-exit=1"]
    if cluster.cpus_per_task:  # not every srun version inherits it from the job
        options.append(f"--cpus-per-task={cluster.cpus_per_task}")
    if cluster.container_image:
        options += _container_options(cfg)
    return options + cluster.srun_args


def _container_options(cfg: SftConfig) -> list[str]:
    """Options of pyxis: the ranks run in the container, the batch script on the host, since requeueing needs scontrol."""
    here, output = str(Path.cwd()), str(Path(cfg.output_dir).resolve())
    mounts = [
        f"{folder}:{folder}" for folder in (here, output) if not Path(folder).is_relative_to(here) or folder == here
    ]
    names = [*cfg.cluster.env, *cfg.cluster.env_pass]  # these override the image's values
    return [
        f"--container-image={cfg.cluster.container_image}",
        f"--container-mounts={','.join(mounts + cfg.cluster.container_mounts)}",
        f"--container-workdir={here}",
        *([f"--container-env={','.join(names)}"] if names else []),
    ]
