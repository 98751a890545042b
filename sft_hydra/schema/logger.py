"""The `logger` section: trackers of experiments."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    """Weights & Biases."""

    project: str = "sft_hydra"
    entity: str | None = None
    """Team or user; null: the default of the account."""
    mode: str = "online"
    """`online`, `offline` (written to `wandb/` in the run's folder, for `wandb sync`) or `disabled`."""


@dataclass(kw_only=True, slots=True)
class TensorboardConfig:
    """TensorBoard."""

    folder: str | None = None
    """Parent of the event files, with a folder for each run; null: `tensorboard/` in the run's folder."""


@dataclass(kw_only=True, slots=True)
class MlflowConfig:
    """MLflow."""

    tracking_uri: str | None = None
    """A server, or `sqlite:///runs.db`; null: MLflow's default (MLFLOW_TRACKING_URI, or a local file)."""
    experiment: str = "sft_hydra"
    """Experiment of the run; created if it does not exist."""


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Trackers, in addition to the console and `metrics.jsonl`, which are always written."""

    wandb: WandbConfig | None = None
    tensorboard: TensorboardConfig | None = None
    mlflow: MlflowConfig | None = None
