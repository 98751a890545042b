"""Uploads an export to the Hugging Face hub, if `export.push_to` is set.

Only verified exports are uploaded, and the token is read only from the environment.
"""

import os
import re

from sft_hydra.checkpoint.hf_export import ExportReport
from sft_hydra.errors import CheckpointError, ConfigError
from sft_hydra.observe.console import Console
from sft_hydra.schema.config import SftConfig

TOKEN = "HF_TOKEN"


def check_upload(cfg: SftConfig) -> None:
    """Checks before training starts. ConfigError if the repository name is invalid or the token is missing."""
    name = cfg.export.push_to
    if name is None:
        return
    problems = []
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        problems.append(f"export.push_to={name}: not a valid repository name; use owner/name")
    if not os.environ.get(TOKEN):
        problems.append(f"export.push_to={name} needs a token with write access: set {TOKEN} in the environment")
    if problems:
        raise ConfigError(*problems)


def upload_export(cfg: SftConfig, exported: ExportReport, console: Console) -> None:
    """Upload the export to `export.push_to`, if set, creating the repository if needed. CheckpointError if the upload fails; the
    export is kept."""
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
    except Exception as problem:  # network, permission, quota: the same message
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__).strip()
        raise CheckpointError(
            f"export.push_to={name}: upload to the hub failed ({reason}). The export is complete in {exported.folder}; rerun with "
            "runner=export to try again"
        ) from problem
    console.say(f"pushed     {commit.commit_url}")
