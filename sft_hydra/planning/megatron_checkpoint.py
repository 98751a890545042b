"""Checkpoints that Megatron writes: recognised by their files, which of them can be read, and where their config.json is.

They are `torch_dist` (`metadata.json` names the backend, tensors lie in `*.distcp`), older `zarr`, or one `mp_rank_*` folder
a rank; a run's folder holds one `iter_*` folder a checkpoint. Weights of `torch_dist` are read, see `checkpoint/megatron.py`.
"""

import json
from pathlib import Path


def torch_dist_folder(path: Path | str) -> Path | None:
    """The torch_dist checkpoint that a folder is, or holds as its latest; None if it is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    checkpoint = _newest(folder)
    return checkpoint if _format(checkpoint) == "torch_dist" and (checkpoint / ".metadata").is_file() else None


def megatron_config(path: Path | str) -> Path | None:
    """config.json of the same model, if it lies in a torch_dist checkpoint or beside it."""
    checkpoint = torch_dist_folder(path)
    places = [checkpoint, checkpoint / "hf", checkpoint.parent, checkpoint.parent / "hf"] if checkpoint else []
    return next((place / "config.json" for place in places if (place / "config.json").is_file()), None)


def megatron_problem(key: str, path: str) -> str | None:
    """Why `key=path` cannot be read there, and what can be done; None if Megatron did not write it."""
    folder = Path(path).expanduser()
    checkpoint = _newest(folder)
    form = _format(checkpoint) or ("torch_dist" if checkpoint != folder else None)
    if form is None:
        return None
    if torch_dist_folder(path) and key != "model.path":
        return (
            f"checkpoint_format: {key}={path} is a Megatron checkpoint ({form}). Its weights are read as the base: "
            f"model.path={path}, with tokenizer.path=<the model's own>; its optimizer state is not read"
        )
    return (
        f"checkpoint_format: {key}={path} is a Megatron checkpoint ({form}) that cannot be read here; whole torch_dist folders "
        "can, and Hugging Face safetensors. Convert it where Megatron-Bridge is installed: "
        "AutoBridge.from_hf_pretrained('<hub id of the architecture>')"
        f".export_ckpt('{checkpoint}', '<new folder>'), then model.path=<new folder>"
    )


def _newest(folder: Path) -> Path:
    """The latest iteration of a run's folder according to its tracker file, else the last one; any other folder itself."""
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
