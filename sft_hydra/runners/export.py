"""runner=export: exports the run's latest checkpoint, or its initial model."""

from pathlib import Path

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.checkpoint import state as checkpoints
from sft_hydra.config.resume_compat import checkpoint_folder
from sft_hydra.errors import ConfigError
from sft_hydra.observe.console import Console
from sft_hydra.parallel.rendezvous import start_process_group
from sft_hydra.paths import RunPaths
from sft_hydra.process.rank import this_rank
from sft_hydra.runners.build_model import start_machine, trained_model
from sft_hydra.runners.hub_upload import check_upload, upload_export
from sft_hydra.runners.write_export import export_model, report_config_changes
from sft_hydra.schema.config import SftConfig


def run(cfg: SftConfig) -> None:
    """Export to `export.path`, else to the run's folder; then upload to the hub if `export.push_to` is set."""
    assert cfg.run_dir is not None
    check_upload(cfg)
    device, first = start_machine(cfg), this_rank().rank == 0
    start_process_group(device, cfg.cluster.start_timeout)
    with Console(RunPaths(Path(cfg.run_dir)).log, speak=first) as console:
        with console.work("loading the tokenizer"):
            tokenizer = load_tokenizer(cfg)
        with console.work("loading the model"):
            built = trained_model(cfg, tokenizer, device)
        if cfg.export.ema:
            if (step := checkpoints.latest(checkpoint_folder(cfg))) is None:
                raise ConfigError(
                    f"export.ema=true: {checkpoint_folder(cfg)} holds no checkpoint of a run with train.ema_decay"
                )
            checkpoints.load_average(step, built.model)
            built.origin += ", the moving average of its weights"
        console.say(f"model      {built.origin}")
        report_config_changes(cfg, tokenizer, console)
        exported = export_model(built.model, cfg, tokenizer, console)
        if first:
            upload_export(cfg, exported, console)
