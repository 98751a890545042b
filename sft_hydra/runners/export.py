"""runner=export: the run's latest checkpoint (or the model it starts from) as a Hugging Face folder."""

from pathlib import Path

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.checkpoint import state as checkpoints
from sft_hydra.config.resume_compat import checkpoint_folder
from sft_hydra.observe.console import Console
from sft_hydra.parallel.rendezvous import start_process_group
from sft_hydra.paths import RunPaths
from sft_hydra.process.rank import this_rank
from sft_hydra.runners.build_model import start_machine, trained_model
from sft_hydra.runners.hub_upload import check_upload, upload_export
from sft_hydra.runners.write_export import export_model, say_mended
from sft_hydra.schema.config import SftConfig


def run(cfg: SftConfig) -> None:
    """Export to `export.path`, else to `hf/` in the run's folder; then to the hub, if `export.push_to` says so."""
    assert cfg.run_dir is not None
    check_upload(cfg)
    device, first = start_machine(cfg), this_rank().rank == 0
    start_process_group(device, cfg.cluster.start_timeout)
    with Console(RunPaths(Path(cfg.run_dir)).log, speak=first) as console:
        with console.work("loading the tokenizer"):
            tokenizer = load_tokenizer(cfg)
        with console.work("loading the model"):
            built = trained_model(cfg, tokenizer, device)
        if cfg.export.ema and (step := checkpoints.latest(checkpoint_folder(cfg))) is not None:
            checkpoints.load_average(step, built.model)
            built.origin += ", the moving average of its weights"
        console.say(f"model      {built.origin}")
        say_mended(cfg, tokenizer, console)
        exported = export_model(built.model, cfg, tokenizer, console)
        if first:
            upload_export(cfg, exported, console)
