"""runner=train: from a resolved config to a trained, evaluated and exported model.

Besides checkpoints, a run writes metrics.jsonl, evaluation.json, samples.json, summary.json, hf/ and report.html.
"""

from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sft_hydra.chat.token_bytes import token_bytes
from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.checkpoint import state as checkpoints
from sft_hydra.checkpoint.hf_export import ExportReport
from sft_hydra.checkpoint.load_hf_weights import local_folder
from sft_hydra.checkpoint.origin import check_origin, origin_of
from sft_hydra.config.resume_compat import checkpoint_folder, fixed_settings
from sft_hydra.data.dataset import TrainRows
from sft_hydra.data.shards import PackedSet
from sft_hydra.data_prep.blend import train_rows
from sft_hydra.data_prep.owning import in_use
from sft_hydra.engine.early_stopping import is_over, observe, why_over
from sft_hydra.engine.loop import StepResult, TrainState, train_loop
from sft_hydra.engine.optimizer import OptimizerSet, build_optimizer, check_state_bits
from sft_hydra.engine.outlook import plan_warnings
from sft_hydra.engine.schedule import total_steps
from sft_hydra.engine.validate import validate
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.observe.console import Console, Steps, counted
from sft_hydra.observe.metrics import MetricsFile, read_metrics
from sft_hydra.observe.run_report import write_report
from sft_hydra.observe.trackers import Trackers
from sft_hydra.parallel.collectives import all_gather_objects, rank0_first, sum_over_ranks
from sft_hydra.parallel.rendezvous import start_process_group, stop_requested
from sft_hydra.paths import RunPaths, find_checkpoint, read_progress
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.planning.topology import rows_per_step, run_layout
from sft_hydra.process.rank import this_rank
from sft_hydra.process.signals import StoppedError, finish_step_on_interrupt
from sft_hydra.runners.build_model import RunModel, model_architecture, new_model, start_machine
from sft_hydra.runners.data_prep import prepared_set
from sft_hydra.runners.evaluate import evaluate_chatcore, evaluate_model, read_kept
from sft_hydra.runners.hub_upload import check_upload, upload_export
from sft_hydra.runners.kernel_report import kernels_of
from sft_hydra.runners.measured import check_metrics, model_flops_utilization, peak_memory_gib, validation_is_due
from sft_hydra.runners.oom import explain_oom
from sft_hydra.runners.summary import Clock, say_next_steps, write_summary
from sft_hydra.runners.tracking import data_artifact, model_artifact, no_trackers, open_trackers, tracker_ids
from sft_hydra.runners.write_export import export_model, report_config_changes
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.train import EarlyStoppingConfig


@dataclass(slots=True)
class TrainingContext:
    """The state shared by the parts of a training run."""

    cfg: SftConfig
    paths: RunPaths
    console: Console
    packed: PackedSet
    tokenizer: ChatTokenizer
    built: RunModel
    optimizer: OptimizerSet
    state: TrainState
    rows: TrainRows
    token_bytes: NDArray[np.int64]
    """Bytes of text of each token id, (vocab,), for validation."""
    metrics: MetricsFile
    trackers: Trackers
    latest: dict[str, Any] = field(default_factory=dict)
    """Last value of every metric."""
    validated: int | None = None
    """Step of the last validation."""
    measured_at: dict[str, int] = field(default_factory=dict)
    """Step of the last value of every metric."""
    last_chatcore_step: int | None = None
    """Step of the last ChatCORE evaluation."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Origin recorded in checkpoints (checkpoint/origin.py); on the first rank."""

    @property
    def model(self) -> DecoderModel:
        """The model in training."""
        return self.built.model

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return total_steps(self.cfg.train, self.cfg.seq_length, self.rows.rows_per_epoch)

    def record(self, values: dict[str, Any]) -> None:
        """Write one line to metrics.jsonl and to the trackers."""
        line = {"step": self.state.step, **values}
        self.metrics.write(line)
        self.trackers.log(line)
        self.latest |= values
        self.measured_at |= dict.fromkeys(values, self.state.step)


def run(cfg: SftConfig) -> None:
    """Prepare missing data, train to the end (resuming an interrupted run), evaluate, export, report."""
    assert cfg.run_dir is not None
    check_upload(cfg)
    check_state_bits(cfg.optimizer)
    paths, clock = RunPaths(Path(cfg.run_dir)), Clock()
    rank, device = this_rank(), start_machine(cfg)
    start_process_group(device, cfg.cluster.start_timeout)
    with ExitStack() as stack, Console(paths.log, speak=rank.rank == 0) as console:
        if rank.rank == 0:
            _read_run_files(paths)
        with clock("prepare data"), rank0_first():
            with console.work("loading the tokenizer"):
                tokenizer = load_tokenizer(cfg)
            architecture = model_architecture(cfg, tokenizer)  # reports a mismatch before data is prepared
            packed = prepared_set(cfg, console)
            stack.enter_context(in_use(packed.folder))
            rows = train_rows(packed, cfg)
        steps = total_steps(cfg.train, cfg.seq_length, rows.rows_per_epoch)
        if missed := rows.unreached_sources(steps * rows_per_step(cfg.train, cfg.seq_length)):
            console.say(missed, style="yellow")
        for warning in plan_warnings(recipe_of(cfg), architecture, rows):
            console.say(warning, style="yellow")
        last = checkpoints.latest(checkpoint_folder(cfg))
        origin = _origin(cfg, packed, last) if rank.rank == 0 else {}
        if last is not None and _is_finished(paths, last, steps, cfg.train.early_stopping):
            console.say(
                f"{paths.root}: already finished. Raise train.train_iters to continue, or set name=... for a new run"
            )
            return
        with explain_oom(cfg, model_architecture(cfg, tokenizer), device):
            with clock("build model"):
                training = _build(cfg, device, paths, console, packed, tokenizer, rows, last)
                training.origin = origin
            with closing(training.trackers):
                exported = _train(training, clock)
        if rank.rank == 0:
            write_summary(paths, cfg, packed, tokenizer, training.built, clock, exported)
            write_report(paths)
        say_next_steps(console, cfg, paths, exported, clock)
        if exported is not None and rank.rank == 0:
            upload_export(cfg, exported, console)


def _train(training: TrainingContext, clock: Clock) -> ExportReport | None:
    """Evaluate, train to the end, evaluate, export. StoppedError after a stop signal."""
    cfg, state = training.cfg, training.state
    if state.step == 0:
        with clock("evaluate before"):
            _evaluate(training, "before")
    with clock("train"), finish_step_on_interrupt():
        _fit(training)
    if is_over(state, cfg.train.early_stopping) and state.step < training.steps:
        training.console.say(why_over(state, cfg.train.early_stopping, training.steps))
    elif state.step < training.steps:
        text = f"stopped at step {state.step} of {training.steps}; rerun the same command to resume"
        training.console.note(text)
        raise StoppedError(text)
    with clock("evaluate after"):
        _evaluate(training, "after")
    if not cfg.export.auto:
        return None
    average = training.optimizer.average if cfg.export.ema else None
    with clock("export"), nullcontext() if average is None else average.applied():
        exported = export_model(training.model, cfg, training.tokenizer, training.console)
    training.trackers.made(model_artifact(cfg, training.packed, training.built.origin, state.step, exported))
    return exported


def _read_run_files(paths: RunPaths) -> None:
    """Check files of an earlier attempt that are read or replaced at the end of training. ConfigError if one cannot be."""
    read_metrics(paths.metrics)
    tracker_ids(paths)
    for file in (paths.evaluation, paths.samples, paths.summary):
        read_kept(file)


def _origin(cfg: SftConfig, packed: PackedSet, last: Path | None) -> dict[str, Any]:
    """The origin of this run. CheckpointError if its last checkpoint has another one."""
    base = None if cfg.model.path is None else local_folder(cfg.model.path, cfg.model.revision)
    origin = origin_of(fixed_settings(cfg), packed, base)
    if last is not None:
        check_origin(last, origin)
    return origin


def _is_finished(paths: RunPaths, last: Path, steps: int, settings: EarlyStoppingConfig) -> bool:
    """Whether all steps, or those before an early stop, are done and the results written (the summary is written last but the
    report)."""
    state = TrainState(**read_progress(last)["state"])
    if state.step < steps and not is_over(state, settings):
        paths.summary.unlink(missing_ok=True)  # training became longer: the summary is outdated
        return False
    return paths.summary.is_file() and paths.report.is_file()


def _build(
    cfg: SftConfig,
    device: torch.device,
    paths: RunPaths,
    console: Console,
    packed: PackedSet,
    tokenizer: ChatTokenizer,
    rows: TrainRows,
    last: Path | None,
) -> TrainingContext:
    """The sharded model, its optimizer and the training progress, loaded from a checkpoint if there is one."""
    layout = run_layout(cfg, model_architecture(cfg, tokenizer))
    check_metrics(cfg, packed)
    resume_step = read_progress(last)["state"]["step"] if last is not None else 0
    first = this_rank().rank == 0
    trackers = open_trackers(cfg, paths, console, resume_step) if first else no_trackers()
    trackers.used(data_artifact(cfg, packed))
    with console.work("loading the model"):
        built = new_model(cfg, tokenizer, device, layout)
    optimizer = build_optimizer(built.model, cfg.optimizer, cfg.train.precision)
    if cfg.train.ema_decay is not None:
        optimizer.keep_average(cfg.train.ema_decay)
    state = TrainState()
    origin = built.origin
    if last is not None:
        state = checkpoints.load(last, built.model, optimizer)
        origin = f"{last} (resumed after step {state.step})"
    elif cfg.checkpoint.load_optimizer:
        checkpoints.load_optimizer(find_checkpoint(str(cfg.checkpoint.load)), built.model, optimizer)
        origin += ", with its optimizer state"
    console.say(
        f"model      {cfg.model.name}: {origin}; {built.trained:,} of {built.parameters:,} parameters are trained, "
        f"on {layout.describe() if layout.world > 1 else device}"
    )
    if cfg.export.auto:
        report_config_changes(cfg, tokenizer, console)
    console.note(f"optimizer  {optimizer.describe()}")
    for operation, kernel in kernels_of(built.model).items():
        (console.say if device.type == "cuda" else console.note)(f"kernels    {operation}: {kernel}")
    if rounded := int(sum_over_ranks([float(optimizer.rounded)], built.model.mesh)[0]):
        console.say(
            f"optimizer  {rounded:,} optimizer-state values were re-quantized to 8 bit: the checkpoint stored fp32, or used a "
            "different block layout"
        )
    if built.coverage:
        console.table(
            "LoRA adapters" if cfg.peft is not None else "trained parameters",
            ["layers", "adapted" if cfg.peft is not None else "trained", "of", "parameters"],
            [(c.kind, str(c.adapted), str(c.total), f"{c.trainable:,}") for c in built.coverage],
        )
    metrics = MetricsFile(paths.metrics if first else None, resume_step=resume_step)
    sizes = token_bytes(tokenizer, built.model.config.vocab_size)
    return TrainingContext(
        cfg, paths, console, packed, tokenizer, built, optimizer, state, rows, sizes, metrics, trackers
    )


def _fit(training: TrainingContext) -> None:
    """Run the training loop with metrics, validation and checkpoints between steps. A stop signal saves a checkpoint."""
    cfg, state = training.cfg, training.state
    if is_over(state, cfg.train.early_stopping):  # resumed after it
        return
    saver = checkpoints.Saver(checkpoint_folder(cfg), recipe_of(cfg), cfg.checkpoint, training.origin)
    with training.console.steps(training.steps, state.step, cfg.train.log_interval) as progress:

        def after_step(result: StepResult) -> None:
            _record(training, result, progress)
            last = result.step == training.steps
            saves = last or _is_due(cfg, result.step)
            if not last and validation_is_due(cfg, state, training.rows.rows_per_epoch):
                _validate(training)
            if not last and cfg.eval.chatcore_every and result.step % cfg.eval.chatcore_every == 0:
                _run_chatcore(training, "training")
            if saves and (cfg.checkpoint.keep_best or "").startswith("val/"):
                _validate(training)
            if saves and (cfg.checkpoint.keep_best or "").startswith("eval/chatcore"):
                _run_chatcore(training, "after" if last else "training")
            _watch(training)
            if saves:
                with training.console.work(f"saving step {result.step}"):
                    saver.save(training.model, training.optimizer, state, training.latest)

        train_loop(
            training.model,
            training.optimizer,
            training.rows,
            state,
            recipe_of(cfg),
            training.steps,
            after_step=after_step,
            should_stop=lambda: stop_requested() or is_over(state, cfg.train.early_stopping),
        )
        if state.step < training.steps and not _is_due(cfg, state.step):
            saver.save(training.model, training.optimizer, state, training.latest)
        saver.wait()


def _watch(training: TrainingContext) -> None:
    """Update early stopping if this step measured its metric. All ranks use the first rank's value."""
    settings, step = training.cfg.train.early_stopping, training.state.step
    if settings.metric is None or step not in (training.validated, training.last_chatcore_step):
        return
    measured = training.latest.get(settings.metric) if training.measured_at.get(settings.metric) == step else None
    if (value := all_gather_objects(measured, training.model.mesh)[0]) is not None:
        observe(training.state, value, settings)


def _is_due(cfg: SftConfig, step: int) -> bool:
    """Whether `checkpoint.interval` requires a checkpoint after this step."""
    return cfg.checkpoint.interval is not None and step % cfg.checkpoint.interval == 0


def _record(training: TrainingContext, result: StepResult, progress: Steps) -> None:
    """Record the metrics of a step and update the console."""
    cfg, speed = training.cfg, result.tokens / result.seconds
    values: dict[str, Any] = {
        "epoch": round(training.state.rows_consumed / training.rows.rows_per_epoch, 6),
        "loss": result.loss,
        "lr": result.lr,
        "grad_norm": result.grad_norm,
        "tokens": result.tokens,
        "trained_tokens": result.trained_tokens,
        "tokens_per_second": round(speed, 1),
        "trained_tokens_per_second": round(result.trained_tokens / result.seconds, 1),
        "total_tokens_per_second": round(rows_per_step(cfg.train, cfg.seq_length) * cfg.seq_length / result.seconds, 1),
        "seconds": round(result.seconds, 4),
        "mfu": model_flops_utilization(training.model, cfg, speed),
        "memory_gib": peak_memory_gib(training.model.device),
    }
    if result.router_aux_loss is not None:
        values["router_aux_loss"] = result.router_aux_loss
    for source, loss in result.source_losses.items():
        values[f"loss/{training.packed.sources[source]}"] = loss
    training.record(values)
    figures = f"loss {result.loss:.4f}  lr {result.lr:.2e}  grad {result.grad_norm:.2f}  {speed:,.0f} tok/s"
    progress.update(result.step, figures)


def _validate(training: TrainingContext) -> None:
    if training.validated == training.state.step:
        return
    training.validated = training.state.step
    recipe, tokens = recipe_of(training.cfg), training.cfg.eval.tokens
    with training.console.work("validation") as work:
        losses = validate(training.model, training.packed, recipe, tokens, training.token_bytes, counted(work, "rows"))
    if losses:
        training.record(losses)
        training.console.say(f"step {training.state.step}: validation loss {losses['val/loss']:.4f}")


def _evaluate(training: TrainingContext, when: str) -> None:
    """Validation, exact match, sample answers and ChatCORE, before or after training; saved in the run's folder."""
    if training.cfg.eval.every != 0:
        _validate(training)
    scores = evaluate_model(
        training.model, training.cfg, training.tokenizer, training.console, paths=training.paths, when=when
    )
    if scores:
        training.record(scores)
    _run_chatcore(training, when)


def _run_chatcore(training: TrainingContext, when: str) -> None:
    """Evaluate ChatCORE, if configured and not done at this step."""
    if not training.cfg.eval.chatcore_every or training.last_chatcore_step == training.state.step:
        return
    training.last_chatcore_step = training.state.step
    scores = evaluate_chatcore(
        training.model, training.cfg, training.tokenizer, training.console, paths=training.paths, when=when
    )
    if scores:
        training.record(scores)
