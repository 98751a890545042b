"""Metrics of training: which there are, when validation is due, utilization and memory of the device."""

import torch

from sft_hydra.data.shards import PackedSet
from sft_hydra.engine.loop import TrainState
from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.planning.estimate import GIB, PEAK_FLOPS, flops_per_token
from sft_hydra.planning.topology import rows_per_step
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.eval import EPOCH


def check_metrics(cfg: SftConfig, packed: PackedSet) -> None:
    """ConfigError if `checkpoint.keep_best` or `train.early_stopping.metric` is a metric that training does not measure."""
    evaluated = []
    if packed.num_rows("valid"):
        evaluated += ["val/loss", "val/bpb", *(f"val/loss/{source}" for source in packed.sources)]
    if cfg.eval.chatcore_every:
        evaluated += ["eval/chatcore", *(f"eval/chatcore/{task}" for task in cfg.eval.chatcore_tasks)]
    of_steps = ["loss", *(f"loss/{source}" for source in packed.sources)]
    wanted = {
        "checkpoint.keep_best": (cfg.checkpoint.keep_best, of_steps + evaluated),
        "train.early_stopping.metric": (cfg.train.early_stopping.metric, evaluated),
    }
    problems = [
        f"{key}={metric} is not a metric of this training; choose one of {', '.join(known)}"
        for key, (metric, known) in wanted.items()
        if metric is not None and metric not in known
    ]
    if problems:
        raise ConfigError(*problems)


def validation_is_due(cfg: SftConfig, state: TrainState, rows_per_epoch: int) -> bool:
    """Whether one follows the last step, by `eval.every`."""
    every = cfg.eval.every
    if isinstance(every, int):
        return every > 0 and state.step % every == 0
    before = state.rows_consumed - rows_per_step(cfg.train, cfg.seq_length)
    return every == EPOCH and state.rows_consumed // rows_per_epoch > before // rows_per_epoch


def model_flops_utilization(model: DecoderModel, cfg: SftConfig, tokens_per_second: float) -> float | None:
    """Relative to the bf16 peak of an H100/H200; None on devices that are not CUDA."""
    if model.device.type != "cuda":
        return None
    flops = flops_per_token(model.config.to_dict(), cfg.seq_length, frozen_base=cfg.peft is not None)
    return flops * tokens_per_second / (PEAK_FLOPS * model.mesh.layout.world)


def peak_memory_gib(device: torch.device) -> float | None:
    """Peak device memory of this rank since the start of training; None on devices that are not CUDA."""
    return round(torch.cuda.max_memory_allocated(device) / GIB, 3) if device.type == "cuda" else None
