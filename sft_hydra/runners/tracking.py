"""Opens the trackers of a training and describes its data and model as their artifacts.

Writes trackers.json, the ids with which a resumed run continues its runs at the trackers.
"""

import json
import re
import secrets
from pathlib import Path
from typing import Any

from sft_hydra.checkpoint.hf_export import ExportReport
from sft_hydra.config import serialize
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.blend import plan_epoch
from sft_hydra.files import exists, read_object, unreadable
from sft_hydra.observe.console import Console
from sft_hydra.observe.trackers import Artifact, MLflow, TensorBoard, Tracker, Trackers, WeightsAndBiases
from sft_hydra.paths import RunPaths
from sft_hydra.schema.config import SftConfig


def open_trackers(cfg: SftConfig, paths: RunPaths, console: Console, resume_step: int) -> Trackers:
    """The trackers in `logger`, on the first rank. TrackerError if one cannot be started."""
    wanted = cfg.logger
    config = {key: getattr(value, "value", value) for key, value in serialize.flatten(cfg).items()}
    name = str(cfg.name)
    ids: dict[str, str] = {}
    if resume_step:
        ids = tracker_ids(paths)
    trackers: list[Tracker] = []
    if wanted.tensorboard is not None:
        folder = Path(wanted.tensorboard.folder) / name if wanted.tensorboard.folder else paths.root / "tensorboard"
        trackers.append(TensorBoard(folder, resume_step=resume_step, config=config))
    if wanted.mlflow is not None:
        mlflow = MLflow(
            tracking_uri=wanted.mlflow.tracking_uri,
            experiment=wanted.mlflow.experiment,
            name=name,
            run_id=ids.get("mlflow"),
            config=config,
        )
        ids["mlflow"] = mlflow.run_id
        trackers.append(mlflow)
    if wanted.wandb is not None and wanted.wandb.mode != "disabled":
        ids.setdefault("wandb", secrets.token_hex(4))
        trackers.append(
            WeightsAndBiases(
                paths.root,
                project=wanted.wandb.project,
                entity=wanted.wandb.entity,
                mode=wanted.wandb.mode,
                name=name,
                run_id=ids["wandb"],
                config=config,
            )
        )
    if ids:
        paths.trackers.write_text(json.dumps(ids) + "\n")
    return Trackers(trackers, console.say)


def tracker_ids(paths: RunPaths) -> dict[str, str]:
    """Ids of this run at its trackers, from an earlier attempt. ConfigError if the file cannot be read."""
    fix = "delete it (the trackers then show the rest of the run as a new run)"
    found = read_object(paths.trackers, fix=fix) if exists(paths.trackers) else {}
    if not all(isinstance(value, str) for value in found.values()):
        raise unreadable(paths.trackers, "an id is not a string", fix=fix)
    return found


def no_trackers() -> Trackers:
    """An empty set of trackers, for ranks other than the first."""
    return Trackers([], lambda _: None)


def data_artifact(cfg: SftConfig, packed: PackedSet) -> Artifact:
    """The packed set as an artifact: blend, rejected rows, hashes."""
    meta = packed.metadata
    facts = {
        "content_key": meta["content_key"],
        "packed_by": "another tool" if meta.get("foreign") else "sft_hydra",
        "tokens": meta["tokens"],
        "pack_size": meta["pack_size"],
        "rows": {split: packed.num_rows(split) for split in ("train", "valid", "test")},
        "blend": {share.name: round(share.token_share, 6) for share in plan_epoch(packed, cfg.data)},
        "rejects": {source["name"]: source["rejects"] for source in meta["sources"]},
    }
    files = [file for file in [packed.folder / "metadata.json"] if file.is_file()]
    return Artifact("dataset", f"{_slug(cfg.data.name)}-data", packed.folder, facts, files)


def model_artifact(cfg: SftConfig, packed: PackedSet, origin: str, step: int, exported: ExportReport) -> Artifact:
    """The exported model as an artifact, with its data and initial weights."""
    facts: dict[str, Any] = {
        "data": f"{_slug(cfg.data.name)}-data",
        "data_content_key": packed.metadata["content_key"],
        "weights_from": origin,
        "kind": exported.kind,
        "step": step,
    }
    return Artifact("model", f"{_slug(str(cfg.name))}-model", exported.folder, facts)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)
