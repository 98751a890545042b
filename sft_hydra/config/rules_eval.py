"""Rules about `eval`: tasks exist and are allowed, checked before a model is loaded."""

from collections.abc import Iterator
from pathlib import Path

from sft_hydra.config.benchmark_files import local_items
from sft_hydra.errors import DataError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.eval import CHATCORE_TASKS, EPOCH
from sft_hydra.schema.runners import Runner


def chatcore_is_known(cfg: SftConfig) -> Iterator[str]:
    """`eval.chatcore_tasks` contains known tasks, and HumanEval only with `eval.allow_code`."""
    for task in cfg.eval.chatcore_tasks:
        if task not in CHATCORE_TASKS:
            yield f"eval.chatcore_tasks: {task} is not one of {', '.join(CHATCORE_TASKS)}"
    if not cfg.eval.chatcore_tasks:
        yield f"eval.chatcore_tasks is empty; choose from {', '.join(CHATCORE_TASKS)}"
    elif cfg.eval.chatcore_tasks == ["humaneval"] and not cfg.eval.allow_code:
        yield "eval.chatcore_tasks=[humaneval] needs eval.allow_code=true: it runs code that the model writes"


def validations(cfg: SftConfig) -> Iterator[str]:
    """`eval.every` is a number of steps or `epoch`."""
    every = cfg.eval.every
    if isinstance(every, str) and every != EPOCH:
        yield f"eval.every={every} is neither a number of steps nor {EPOCH}"


def early_stopping(cfg: SftConfig) -> Iterator[str]:
    """`train.early_stopping.metric` is measured during training."""
    metric, wanted = cfg.train.early_stopping.metric, cfg.eval
    if metric is None:
        return
    measured = {"val/": bool(wanted.every), "eval/chatcore": bool(wanted.chatcore_every)}
    kind = next((kind for kind in measured if metric.startswith(kind)), None)
    if kind is None:
        yield (
            f"train.early_stopping.metric={metric} is not measured at intervals of training: use val/loss, val/bpb, "
            "val/loss/<source>, eval/chatcore or eval/chatcore/<task>"
        )
    elif not measured[kind]:
        key = "eval.every=100 or eval.every=epoch" if kind == "val/" else "eval.chatcore_every=100"
        yield f"train.early_stopping.metric={metric} is not measured while training; set {key}"


def average(cfg: SftConfig) -> Iterator[str]:
    """`export.ema` needs `train.ema_decay`."""
    if cfg.runner is Runner.train and cfg.export.ema and cfg.train.ema_decay is None:
        yield "export.ema=true: there is no average of the weights without train.ema_decay, 0.999 for instance"


def tasks_are_there(cfg: SftConfig) -> Iterator[str]:
    """Files in `eval.tasks` exist, no task is listed twice, and code is run only with `eval.allow_code`."""
    if cfg.runner is not Runner.evaluate:
        return
    for task in cfg.eval.tasks:
        if is_path(task) and not Path(task).expanduser().exists():
            yield f"eval.tasks: {task}: no such file or folder"
    if "humaneval" in cfg.eval.tasks and not cfg.eval.allow_code:
        yield (
            "eval.tasks: humaneval runs code that the model writes; set eval.allow_code=true to run it in a sandbox "
            "(no network, no files, limited time and memory), or remove the task"
        )
    if len(set(cfg.eval.tasks)) < len(cfg.eval.tasks):
        yield f"eval.tasks={cfg.eval.tasks} contains a task twice"


def local_items_are_there(cfg: SftConfig) -> Iterator[str]:
    """`eval.data_dir` exists and holds the items of the ChatCORE tasks."""
    wanted = cfg.eval
    if wanted.data_dir is None:
        return
    if not Path(wanted.data_dir).expanduser().is_dir():
        yield f"eval.data_dir={wanted.data_dir}: no such folder"
        return
    enabled = {Runner.train: bool(wanted.chatcore_every), Runner.evaluate: "chatcore" in wanted.tasks}
    for task in wanted.chatcore_tasks if enabled.get(cfg.runner) else ():
        if task in CHATCORE_TASKS and task != "spelling_bee" and (task != "humaneval" or wanted.allow_code):
            try:
                local_items(task, "test", wanted.data_dir)
            except DataError as error:
                yield from error.problems


def is_path(task: str) -> bool:
    """Whether an entry of `eval.tasks` is a file or folder rather than a task name; does not look at the disk."""
    return "/" in task or task.endswith((".yaml", ".yml"))


EVAL_RULES = (
    validations,
    early_stopping,
    average,
    chatcore_is_known,
    tasks_are_there,
    local_items_are_there,
)
