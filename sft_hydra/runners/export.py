"""runner=export: the run's latest checkpoint (or the model it starts from) as a Hugging Face folder."""

from pathlib import Path

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.observe.console import Console
from sft_hydra.paths import RunPaths
from sft_hydra.runners.build_model import start_machine, trained_model
from sft_hydra.runners.hub_upload import check_upload, upload_export
from sft_hydra.runners.write_export import export_model, say_mended
from sft_hydra.schema.config import SftConfig


def run(cfg: SftConfig) -> None:
    """Export to `export.path`, else to `hf/` in the run's folder; then to the hub, if `export.push_to` says so."""
    assert cfg.run_dir is not None
    with Console(RunPaths(Path(cfg.run_dir)).log) as console:
        check_upload(cfg)
        with console.work("loading the tokenizer"):
            tokenizer = load_tokenizer(cfg)
        with console.work("loading the model"):
            built = trained_model(cfg, tokenizer, start_machine(cfg))
        console.say(f"model      {built.origin}")
        say_mended(cfg, tokenizer, console)
        upload_export(cfg, export_model(built.model, cfg, tokenizer, console), console)
