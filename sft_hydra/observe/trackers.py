"""Experiment trackers besides metrics.jsonl: Weights & Biases, TensorBoard and MLflow, on rank 0 only.

Metric names: `loss` of metrics.jsonl is `train/loss`; validation and evaluation metrics keep their names. A tracker that
fails during training is disabled; training continues.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sft_hydra.errors import TrackerError

KEPT_NAMES = ("val/", "eval/")  # prefixes of metrics.jsonl that keep their name; the rest gets `train/`
CHATCORE = "eval/chatcore"
CHATCORE_NAMES = {"chatcore": "chatcore_metric", "chatcore_categorical": "chatcore_cat"}  # the names in nanochat
MLFLOW_PARAMS = 100  # maximum per request
MLFLOW_LENGTH = 500  # maximum length of a parameter value, for all versions


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder that a run has used or produced, for lineage; logged by reference."""

    kind: str  # `dataset` or `model`
    name: str
    folder: Path
    facts: dict[str, Any]
    files: list[Path] = field(default_factory=list)
    """Small files that are uploaded."""


class Tracker(Protocol):
    """One tracking service. Methods raise the exceptions of its library."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of a step."""

    def used(self, artifact: Artifact) -> None:
        """Log an artifact as an input of the run."""

    def made(self, artifact: Artifact) -> None:
        """Log an artifact as an output of the run."""

    def close(self) -> None:
        """End the run at the service."""


class Trackers:
    """All trackers of a run, possibly none. `warn` is called with a message when one fails."""

    def __init__(self, trackers: list[Tracker], warn: Callable[[str], None]) -> None:
        self._trackers, self._warn = trackers, warn

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one line of metrics.jsonl."""
        values = tracked_values(record)
        self._each(lambda tracker: tracker.log(record["step"], values))

    def used(self, artifact: Artifact) -> None:
        self._each(lambda tracker: tracker.used(artifact))

    def made(self, artifact: Artifact) -> None:
        self._each(lambda tracker: tracker.made(artifact))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # of a library or a network: hours of training must not end with it
                self._trackers.remove(tracker)
                self._warn(f"{type(tracker).__name__} failed and is disabled ({error}); metrics.jsonl has all values")


def tracked_values(record: Mapping[str, Any]) -> dict[str, float]:
    """The values of a line of metrics.jsonl under their tracker names."""
    return {_tracked_name(name): value for name, value in record.items() if name != "step" and value is not None}


def _tracked_name(name: str) -> str:
    if name.startswith(CHATCORE):
        name = name.removeprefix("eval/")
        return CHATCORE_NAMES.get(name, name)
    return name if name.startswith(KEPT_NAMES) else f"train/{name}"


class WeightsAndBiases:
    """Weights & Biases. A resumed training continues the W&B run `run_id`. Writes to `folder`/wandb; TrackerError if W&B
    rejects the run."""

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        entity: str | None,
        mode: str,
        name: str,
        run_id: str,
        config: dict[str, Any],
    ) -> None:
        self._wandb = optional_module("wandb", "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = self._wandb.init(
                dir=str(folder),
                project=project,
                entity=entity,
                mode=mode,
                name=name,
                id=run_id,
                resume="allow",
                config=config,
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except self._wandb.errors.Error as error:
            raise TrackerError(
                f"logger=wandb: {error}; log in with `wandb login`, set WANDB_API_KEY, or choose logger.wandb.mode=offline"
            ) from error
        # The step is a logged value, so that a resumed run may repeat the steps after its checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def used(self, artifact: Artifact) -> None:
        if self._run.settings.mode == "online":
            self._run.use_artifact(self._wandb_artifact(artifact))
        else:  # offline, W&B does not record the use of an artifact
            self.made(artifact)

    def made(self, artifact: Artifact) -> None:
        self._run.log_artifact(self._wandb_artifact(artifact))

    def close(self) -> None:
        self._run.finish()

    def _wandb_artifact(self, artifact: Artifact) -> Any:
        logged = self._wandb.Artifact(_plain(artifact.name), type=artifact.kind, metadata=artifact.facts)
        logged.add_reference(artifact.folder.absolute().as_uri(), name="folder", checksum=False)
        for file in artifact.files:
            logged.add_file(str(file), name=file.name)
        return logged


class TensorBoard:
    """TensorBoard event files in `folder`; values of earlier files after `resume_step` are purged."""

    def __init__(self, folder: Path, *, resume_step: int, config: dict[str, Any]) -> None:
        optional_module("tensorboard", "tensorboard")
        module = import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)
        self._writer.add_text("config", _as_block(config), resume_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def used(self, artifact: Artifact) -> None:
        self._writer.add_text(artifact.kind, _as_block({"folder": str(artifact.folder), **artifact.facts}))

    def made(self, artifact: Artifact) -> None:
        self.used(artifact)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """MLflow. `run_id`: the run to continue, None for a new one. `tracking_uri=None`: MLflow's default. TrackerError if
    MLflow rejects the run."""

    def __init__(
        self, *, tracking_uri: str | None, experiment: str, name: str, run_id: str | None, config: dict[str, Any]
    ) -> None:
        entities = optional_module("mlflow.entities", "mlflow")
        tracking = import_module("mlflow.tracking")
        exceptions = import_module("mlflow.exceptions")
        self._metric = entities.Metric
        try:
            self._client = tracking.MlflowClient(tracking_uri)
            if run_id is None:
                found = self._client.get_experiment_by_name(experiment)
                number = found.experiment_id if found else self._client.create_experiment(experiment)
                run_id = str(self._client.create_run(number, run_name=name).info.run_id)
            self.run_id = run_id
            params = [entities.Param(_plain(key), str(value)[:MLFLOW_LENGTH]) for key, value in config.items()]
            known = self._client.get_run(run_id).data.params
            params = [param for param in params if param.key not in known]  # MLflow rejects a repeated parameter
            for first in range(0, len(params), MLFLOW_PARAMS):
                self._client.log_batch(run_id, params=params[first : first + MLFLOW_PARAMS])
        except (exceptions.MlflowException, OSError) as error:
            where = tracking_uri or "null (MLflow's default, MLFLOW_TRACKING_URI)"
            raise TrackerError(f"logger.mlflow.tracking_uri={where}: {error}") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        metrics = [self._metric(_plain(name), float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def used(self, artifact: Artifact) -> None:
        self._client.set_tag(self.run_id, f"{artifact.kind}.folder", str(artifact.folder))
        for key, value in artifact.facts.items():
            self._client.set_tag(self.run_id, f"{artifact.kind}.{key}", json.dumps(value))

    def made(self, artifact: Artifact) -> None:
        self.used(artifact)

    def close(self) -> None:
        self._client.set_terminated(self.run_id)


def optional_module(module: str, package: str) -> Any:
    """Import `module`. TrackerError, with the pip command, if its package is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        packages = {"mlflow": "mlflow-skinny 'sqlalchemy>=2' 'alembic>=1.13'"}.get(package, package)
        raise TrackerError(
            f"logger={package}: the package {error.name} is not installed: pip install {packages}, "
            f"or remove {package} from logger=..."
        ) from error


def _plain(name: str) -> str:
    """The name with characters that not every tracker accepts replaced by _."""
    return re.sub(r"[^\w./-]", "_", name)


def _as_block(value: dict[str, Any]) -> str:
    """JSON as an indented block, which TensorBoard shows unchanged."""
    return "".join(f"    {line}\n" for line in json.dumps(value, indent=1, default=str).splitlines())
