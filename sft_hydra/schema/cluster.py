"""The `cluster` and `parallel` sections: nodes, GPUs and Slurm options, and how a model is split over the ranks."""

from dataclasses import dataclass, field
from enum import Enum

from sft_hydra.schema.ranges import number


class ClusterKind(Enum):
    """How ranks are started: on this machine or as a Slurm job."""

    local = "local"
    slurm = "slurm"


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Nodes and GPUs of the run, and options of its Slurm job."""

    kind: ClusterKind = ClusterKind.local
    nodes: int = number(1, 1, 10_000)
    gpus_per_node: int | None = number(None, 1, 1_000)
    """Ranks on each node (on a CPU: processes). null: locally one per visible GPU (CUDA_VISIBLE_DEVICES), one without
    GPUs and for the demo; on Slurm 8."""
    gpu_memory_gib: float = number(80, 0, 100_000, above=True)
    """Memory of one GPU, for the choice of a layout. H100 80, H200 141."""
    partition: str | None = None
    cpu_partition: str | None = None
    """Partition of the jobs that prepare data; null: `partition`."""
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    time: str | None = None
    """Time limit in Slurm's format, `HH:MM:SS` or `D-HH:MM:SS`."""
    cpus_per_task: int | None = number(None, 1, 100_000)
    """CPU cores of one rank; null: the site's default, often 1."""
    mem: str | None = None
    """Memory of each node in Slurm's format, `200G`; 0 = all of it; null: the site's default."""
    exclusive: bool = False
    """Reserve whole nodes for this job."""
    sbatch_args: list[str] = field(default_factory=list)
    """Further options of sbatch: `--constraint=h100`. Not used for jobs that prepare data."""
    srun_args: list[str] = field(default_factory=list)
    """Further options of srun, which starts the ranks."""
    container_image: str | None = None
    """Image for the ranks, through pyxis: an enroot URI or a .sqsh file."""
    container_mounts: list[str] = field(default_factory=list)
    """`host:container[:ro]`. The working directory and `output_dir` are always mounted."""
    python: str | None = None
    """Python interpreter on the nodes; null: the current one, in a container `python`."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job. Secrets are an error: pass them by name with `env_pass`."""
    env_pass: list[str] = field(default_factory=lambda: ["HF_HOME", "HF_DATASETS_CACHE", "WANDB_API_KEY", "HF_TOKEN"])
    """Names of environment variables passed on from the submitting shell; their values are never written to disk."""
    setup: list[str] = field(default_factory=list)
    """Shell lines run once, on the first node, before the ranks start; variables that they export reach every rank."""
    start_timeout: int = number(600, 1, 1_000_000)
    """Timeout in seconds for the ranks to connect at the start."""
    stop_seconds: int = number(120, 0, 1_000_000)
    """Seconds before the time limit at which the ranks save a checkpoint and the job requeues itself."""
    attach: bool = False
    """True: follow the job's log until it ends. false: print the job id and return."""
    max_parallel: int | None = number(None, 1, 1_000_000)
    """Jobs of one sweep that may run at the same time."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """Sizes of the parallel layout; the remaining ranks are data-parallel (FSDP)."""

    tp: int | None = number(None, 1, 100_000)
    """Tensor parallel size; null: chosen for the model and the cluster."""
    pp: int | None = number(None, 1, 100_000)
    """Pipeline parallel size; null: chosen."""
    vp: int = number(1, 1, 100_000)
    """Stages that each pipeline rank holds; with more than one the schedule is interleaved."""
    cp: int | None = number(None, 1, 100_000)
    """Context parallel size; null: chosen."""
    ep: int | None = number(None, 1, 100_000)
    """Expert parallel size; null: chosen."""
    dp_replicate: int = number(1, 1, 100_000)
    """Copies of the sharded model (HSDP). The FSDP degree is world / (tp*pp*cp*dp_replicate)."""
