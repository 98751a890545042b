"""What a training measures and when, and that the metrics which the config goes by are among it."""

from sft_hydra.data.shards import PackedSet
from sft_hydra.engine.loop import TrainState
from sft_hydra.errors import ConfigError
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
