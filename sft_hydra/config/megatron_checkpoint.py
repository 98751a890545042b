"""Checkpoints that Megatron writes: recognised by their files, never opened, since what describes their tensors is a pickle.

They are `torch_dist` (`metadata.json` names the backend, tensors lie in `*.distcp`), older `zarr`, or one `mp_rank_*` folder
a rank; a run's folder holds one `iter_*` folder a checkpoint.
"""

import json
from pathlib import Path


def megatron_problem(key: str, path: str) -> str | None:
    """Why `key=path` cannot be read, and how it can be converted; None if Megatron did not write it."""
    folder = Path(path).expanduser()
    checkpoint = _newest(folder)
    form = _format(checkpoint) or ("torch_dist" if checkpoint != folder else None)
    if form is None:
        return None
    return (
        f"checkpoint_format: {key}={path} is a Megatron checkpoint ({form}); what is read here is Hugging Face safetensors. "
        "Convert it where Megatron-Bridge is installed: AutoBridge.from_hf_pretrained('<hub id of the architecture>')"
        f".export_ckpt('{checkpoint}', '<new folder>'), then model.path=<new folder>"
    )


def _newest(folder: Path) -> Path:
    """The iteration that a run's folder calls its latest, else its last; the folder itself if it is no run's folder."""
    tracker = folder / "latest_checkpointed_iteration.txt"
    if tracker.is_file():
        latest = tracker.read_text(encoding="utf-8", errors="replace").strip()
        return folder / (f"iter_{int(latest):07d}" if latest.isdecimal() else latest or "release")
    return max(folder.glob("iter_*"), default=folder)


def _format(folder: Path) -> str | None:
    try:
        backend = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get("sharded_backend")
    except (OSError, ValueError, AttributeError):
        backend = None
    if backend is not None:
        return str(backend)
    if any(folder.glob("*.distcp")):
        return "torch_dist"
    return "one folder a rank" if any(folder.glob("mp_rank_*")) else None
