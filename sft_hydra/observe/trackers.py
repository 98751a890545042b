"""Loggers beside metrics.jsonl: Weights & Biases, TensorBoard and MLflow, of the first rank only.

Owns the names that values have there (`loss` of metrics.jsonl is `train/loss`; what validation and evaluation measure keeps
its name), and that a tracker which fails while training goes on is switched off, not the training.
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

OWN_NAMES = ("val/", "eval/")  # of metrics.jsonl; all else is about training
CHATCORE = "eval/chatcore"
CHATCORE_NAMES = {"chatcore": "chatcore_metric", "chatcore_categorical": "chatcore_cat"}  # as nanochat calls them
MLFLOW_PARAMS = 100  # of one request
MLFLOW_LENGTH = 500  # of a parameter's value, in any version


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder that a run has read or made, for lineage. It is pointed at and stays where it is."""

    kind: str  # `dataset` or `model`
    name: str
    folder: Path
    facts: dict[str, Any]
    files: list[Path] = field(default_factory=list)
    """Small ones that are uploaded."""


class Tracker(Protocol):
    """One service. Raises whatever its library does."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def used(self, artifact: Artifact) -> None: ...
    def made(self, artifact: Artifact) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """All that a run has, none perhaps. `tell` says to people what went wrong."""

    def __init__(self, trackers: list[Tracker], tell: Callable[[str], None]) -> None:
        self._trackers, self._tell = trackers, tell

    def log(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
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
                self._tell(f"{type(tracker).__name__} is switched off ({error}); metrics.jsonl has everything")


def tracked_values(record: Mapping[str, Any]) -> dict[str, float]:
    """The values of a line of metrics.jsonl under the names that trackers show."""
    return {_tracked_name(name): value for name, value in record.items() if name != "step" and value is not None}


def _tracked_name(name: str) -> str:
    if name.startswith(CHATCORE):
        name = name.removeprefix("eval/")
        return CHATCORE_NAMES.get(name, name)
    return name if name.startswith(OWN_NAMES) else f"train/{name}"


class WeightsAndBiases:
    """`run_id` is the run's own: a resumed training goes on in it. Writes to `folder`/wandb."""

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
        # Steps are a value of their own, so that a resumed run may repeat those after its checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def used(self, artifact: Artifact) -> None:
        if self._run.settings.mode == "online":
            self._run.use_artifact(self._as_theirs(artifact))
        else:  # W&B records no use without its server
            self.made(artifact)

    def made(self, artifact: Artifact) -> None:
        self._run.log_artifact(self._as_theirs(artifact))

    def close(self) -> None:
        self._run.finish()

    def _as_theirs(self, artifact: Artifact) -> Any:
        theirs = self._wandb.Artifact(_plain(artifact.name), type=artifact.kind, metadata=artifact.facts)
        theirs.add_reference(artifact.folder.absolute().as_uri(), name="folder", checksum=False)
        for file in artifact.files:
            theirs.add_file(str(file), name=file.name)
        return theirs


class TensorBoard:
    """Event files in `folder`; what earlier files say after `resume_step` no longer counts."""

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
    """`run_id`: the run to go on with, None for a new one. `tracking_uri=None`: as MLflow finds it."""

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
            params = [param for param in params if param.key not in known]  # a parameter is said once
            for first in range(0, len(params), MLFLOW_PARAMS):
                self._client.log_batch(run_id, params=params[first : first + MLFLOW_PARAMS])
        except (exceptions.MlflowException, OSError) as error:
            where = tracking_uri or "what MLflow finds (MLFLOW_TRACKING_URI)"
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
    """Import it, or say how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        packages = {"mlflow": "mlflow-skinny 'sqlalchemy>=2' 'alembic>=1.13'"}.get(package, package)
        raise TrackerError(
            f"logger={package}: the package {error.name} is not installed: pip install {packages}, "
            f"or leave {package} out of logger=..."
        ) from error


def _plain(name: str) -> str:
    """With the characters that every tracker takes."""
    return re.sub(r"[^\w./-]", "_", name)


def _as_block(value: dict[str, Any]) -> str:
    """Indented, which TensorBoard shows as it is."""
    return "".join(f"    {line}\n" for line in json.dumps(value, indent=1, default=str).splitlines())
