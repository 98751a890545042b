"""An export on the Hugging Face hub, for who asks for it with `export.push_to`.

Owns that nothing leaves the machine otherwise, that only a verified export does, and that the token comes from the
environment alone.
"""

import os
import re

from sft_hydra.checkpoint.hf_export import ExportReport
from sft_hydra.errors import CheckpointError, ConfigError
from sft_hydra.observe.console import Console
from sft_hydra.schema.config import SftConfig

TOKEN = "HF_TOKEN"


def check_upload(cfg: SftConfig) -> None:
    """ConfigError for what can be known before the work is done."""
    name = cfg.export.push_to
    if name is None:
        return
    problems = []
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        problems.append(f"export.push_to={name}: a repository of the hub is owner/name")
    if not os.environ.get(TOKEN):
        problems.append(f"export.push_to={name} needs a token that may write there: set {TOKEN} in the environment")
    if problems:
        raise ConfigError(*problems)


def upload_export(cfg: SftConfig, exported: ExportReport, console: Console) -> None:
    """Upload the export to `export.push_to`, if that is set; the repository is made if it is not there. CheckpointError if the
    hub refuses: the export stays where it is."""
    name = cfg.export.push_to
    if name is None:
        return
    from huggingface_hub import HfApi

    hub = HfApi(token=os.environ[TOKEN])
    try:
        with console.work(f"uploading to {name}"):
            hub.create_repo(name, private=not cfg.export.public, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=name, folder_path=exported.folder, commit_message=f"{exported.kind} of {cfg.name}"
            )
    except Exception as problem:  # network, permission, quota: all told the same way
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__).strip()
        raise CheckpointError(
            f"export.push_to={name}: the hub did not take it ({reason}). The export is whole in {exported.folder}; the same "
            "command with runner=export tries again"
        ) from problem
    console.say(f"pushed     {commit.commit_url}")
