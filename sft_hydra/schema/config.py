"""The whole config of a command, `SftConfig`: its sections are dataclasses in the other files of this folder.

A dataclass declares every key with its type and default; the YAML in `conf/` sets values for a model, a data set or a
cluster. The text under a field is its documentation (docs/config.md is generated from it).
"""

from dataclasses import dataclass, field
from enum import Enum

from sft_hydra.schema.cluster import ClusterConfig, ParallelConfig
from sft_hydra.schema.data import DataConfig, TokenizerConfig
from sft_hydra.schema.eval import EvalConfig
from sft_hydra.schema.logger import LoggerConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.optim import AdamW, Optimizer, Scheduler
from sft_hydra.schema.peft import LoraConfig
from sft_hydra.schema.ranges import number
from sft_hydra.schema.runners import ExportConfig, GenerateConfig, InspectConfig, Runner
from sft_hydra.schema.train import CheckpointConfig, TrainConfig


class Device(Enum):
    """Where the model is."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"
    mps = "mps"


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """The whole config of a command."""

    runner: Runner = Runner.train
    """What the command does."""
    name: str | None = None
    """Name of the run; null: `demo` for the default command, else `<model>-<data>-<peft>`."""
    output_dir: str = "outputs"
    """Parent of the run folders."""
    seq_length: int = number(4096, 1, 100_000_000)
    """Tokens of a packed sequence, in the packed set and in training."""
    seed: int = number(1234, 0, 2**32 - 1)
    dry_run: bool = False
    """Print the plan without starting or writing anything."""
    device: Device = Device.auto
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    peft: LoraConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: Optimizer = field(default_factory=AdamW)
    scheduler: Scheduler = field(default_factory=Scheduler)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    run_dir: str | None = None
    """Folder of this run; filled in when the config is resolved (never set by hand)."""
