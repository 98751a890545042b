"""Translates a configuration file of NeMo RL, NeMo Automodel or Megatron-Bridge that is passed as `experiment=...`, key by key."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sft_hydra.config.aliases import UNKNOWN, file_answer
from sft_hydra.config.schema_introspection import UnknownKey, all_keys, hint
from sft_hydra.errors import ConfigError

SIGNS = {  # sections that only files of these frameworks have; the first match counts
    "NeMo Automodel": {"step_scheduler", "lr_scheduler", "dist_env"},
    "NeMo RL": {"policy", "sft", "checkpointing"},
    "Megatron-Bridge": {"ddp", "rng", "mixed_precision", "dataset", "dist", "recipe", "hf_model_path"},
}
LONGEST = 100  # letters of a value that fits into a command
_PLAIN = re.compile(r"[\w./:@%+-]+")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_CHOICES = ("peft", "logger", "data", "model", "scheduler", "optimizer", "cluster", "experiment")


def refuse_peer_file(content: Mapping[Any, Any], file: str) -> None:
    """Raises ConfigError, with a line for each key, if `content` is a configuration of one of these frameworks."""
    peer = next((peer for peer, signs in SIGNS.items() if signs & content.keys()), None)
    if peer is None and isinstance(content.get("defaults"), str):  # a file to build on; Hydra has a list there
        peer = "NeMo RL"
    if peer is None:
        return
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    overrides: list[str] = []
    ours = set(all_keys())
    for key, value, beside in _settings(content):
        answer = file_answer(peer, key, value, beside, ours)
        if answer and answer.line:
            lines.append(f"{key}: {value or UNKNOWN} -> {answer.line}")
            overrides += answer.line.split(" ") if value != "null" or UNKNOWN not in answer.line else []
        else:
            section, _, name = key.rpartition(".")
            reason = f"has no equivalent: {answer.why}" if answer else hint(UnknownKey(key, section, name))
            reasons.setdefault(reason, []).append(key)
    lines += [f"{', '.join(keys)}: {why}" for why, keys in reasons.items()]
    command = " ".join(f'"{text}"' if re.search(r"[ '\[{]", text) else text for text in joined(overrides))
    heading = f"{file} is a configuration of {peer}. Its keys, with the ones to use here:"
    raise ConfigError(heading, *lines, f"as one command: python -m sft_hydra {command}")


def joined(overrides: list[str]) -> list[str]:
    """The overrides of one command: each key once, group choices first, without keys whose value is unknown."""
    known: dict[str, str] = {}
    loggers = [text.partition("=")[2] for text in overrides if text.startswith("logger=")]
    for text in overrides:
        key, _, value = text.partition("=")
        if UNKNOWN not in value and "<" not in value:
            known.setdefault(key, value)
    if loggers:
        known["logger"] = f"[{','.join(dict.fromkeys(loggers))}]" if len(set(loggers)) > 1 else loggers[0]
    if "train.train_iters" in known:
        known.pop("train.epochs", None)
    if any(key.startswith("peft.") for key in known):
        known.setdefault("peft", "lora")
    if known.get("scheduler") == "constant":
        known.pop("scheduler.min_lr", None)
    kept = {
        key: value
        for key, value in known.items()
        if not (key.startswith("logger.") and key.split(".")[1] not in loggers)
        and not (key.startswith("peft.") and known["peft"] == "null")
    }
    return [f"{key}={value}" for key, value in sorted(kept.items(), key=lambda item: item[0] not in _CHOICES)]


def _settings(content: Mapping[Any, Any]) -> Iterator[tuple[str, str | None, dict[str, str]]]:
    """(key, value as in a command or None, values beside it) of everything that is in use."""
    megatron = _at(content, "policy.megatron_cfg.enabled") is True
    for key, section in _sections(content, ""):
        if megatron and key.startswith("policy.optimizer"):
            continue
        texts = {
            str(name): text
            for name, value in section.items()
            if not (isinstance(value, dict) and value) and (text := as_text(value, content)) is not None
        }
        for name, value in section.items():
            if not (isinstance(value, dict) and value) and (section.get("enabled") is not False or name == "enabled"):
                yield f"{key}.{name}".lstrip("."), texts.get(str(name)), texts


def _sections(node: Mapping[Any, Any], key: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    yield key, node
    if node.get("enabled") is not False:
        for name, value in node.items():
            if isinstance(value, dict) and value:
                yield from _sections(value, f"{key}.{name}".lstrip("."))


def as_text(value: Any, content: Mapping[Any, Any], depth: int = 0) -> str | None:
    """A value as it is written in a command; None if it is looked up elsewhere, or too long for one. `${a.b}` is the value
    of that key, at most eight steps away."""
    if isinstance(value, str) and (reference := _REFERENCE.fullmatch(value)) and depth < 8:
        return as_text(_at(content, reference[1]), content, depth + 1)
    if isinstance(value, str):
        text = _REFERENCE.sub(lambda match: as_text(_at(content, match[1]), content, depth + 1) or match[0], value)
        if "${" in text or "'" in text or "\n" in text or len(text) > LONGEST:
            return None
        return text if _PLAIN.fullmatch(text) else f"'{text}'"
    if isinstance(value, list | tuple):
        texts = [as_text(item, content, depth + 1) for item in value]
        return None if None in texts else f"[{','.join(map(str, texts))}]"
    if isinstance(value, dict):
        pairs = {name: as_text(item, content, depth + 1) for name, item in value.items()}
        return None if None in pairs.values() else f"{{{','.join(f'{name}: {text}' for name, text in pairs.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _at(content: Mapping[Any, Any], key: str) -> Any:
    node: Any = content
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node
