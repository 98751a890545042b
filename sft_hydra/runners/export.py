"""runner=export: the run's latest checkpoint (or the model it starts from) as a Hugging Face folder."""

from pathlib import Path

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.config.schema import SftConfig
from sft_hydra.observe.console import Console
from sft_hydra.paths import RunPaths
from sft_hydra.runners.model import start_machine, trained_model
from sft_hydra.runners.push import check_push, push_export
from sft_hydra.runners.train import export_model


def run(cfg: SftConfig) -> None:
    """Export to `export.path`, else to `hf/` in the run's folder; then to the hub, if `export.push_to` says so."""
    assert cfg.run_dir is not None
    with Console(RunPaths(Path(cfg.run_dir)).log) as console:
        check_push(cfg)
        tokenizer = load_tokenizer(cfg)
        built = trained_model(cfg, tokenizer, start_machine(cfg))
        console.say(f"model      {built.origin}")
        push_export(cfg, export_model(built.model, cfg, tokenizer, console), console)
