"""Rules between config keys. Each is a generator of messages that name the key, its value and the fix.

Here are those about several sections, and the list of all; the others are in rules_<section>.py.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain

from sft_hydra.config.rules_data import data_is_set, roles_are_known, splits_sum_to_one
from sft_hydra.config.rules_eval import EVAL_RULES
from sft_hydra.config.rules_files import FILE_RULES
from sft_hydra.config.rules_model import export_formats, foreign_model, layout, model_is_set, routers
from sft_hydra.config.rules_peft import added_tokens, lora_start, lora_targets, quantized_base
from sft_hydra.config.rules_train import (
    batch_size,
    fp8,
    frozen_parts,
    length_of_training,
    optimizer_state,
    optimizer_warm_start,
    schedule,
    two_betas,
)
from sft_hydra.config.serialize import flatten
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.runners import Runner
from sft_hydra.secret_text import assigns_secret, holds_secret, is_secret_name

Rule = Callable[[SftConfig], Iterator[str]]

ALLOWED = {
    "scheduler.kind": ("cosine", "warmdown", "wsd", "constant"),
    "peft.dropout_position": ("pre", "post"),
    "peft.quantize_base": ("nf4", "int8"),
    "peft.a_init": ("xavier", "kaiming", "uniform", "normal"),
    "inspect.split": ("train", "valid", "test"),
    "logger.wandb.mode": ("online", "offline", "disabled"),
}
READABLE_FORMATS = (
    "auto",
    "openai",
    "prompt_completion",
    "sharegpt",
    "alpaca",
    "squad",
    "oasst",
    "mmlu",
    "gsm8k",
    "text",
)

VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def known_words(cfg: SftConfig) -> Iterator[str]:
    """Text keys that take one of a fixed list of values."""
    values = flatten(cfg)
    allowed = {
        **ALLOWED,
        "data.default.format": READABLE_FORMATS,
        **{f"data.sources.{name}.format": READABLE_FORMATS for name in cfg.data.sources},
    }
    for key, words in allowed.items():
        if (value := values.get(key)) is not None and value not in words:
            yield f"{key}={value} is not one of {', '.join(words)}"


def run_name(cfg: SftConfig) -> Iterator[str]:
    """`name` is a folder below `output_dir`, and not the one of prepared data."""
    if cfg.name is None:
        return
    parts = cfg.name.split("/")  # a job of a sweep may be named as <name>/<label>
    if any(not part.strip(". ") or re.search(r"[\\\n]", part) for part in parts) or parts[0] == "data":
        yield f"name={cfg.name!r} is not a valid folder name below output_dir (`data` is reserved for prepared data); choose another name"


def runner_is_set(cfg: SftConfig) -> Iterator[str]:
    """Keys of another runner are not set with runner=train: the wrong runner would be noticed only after training."""
    requested = {
        "generate.prompts": (cfg.generate.prompts, Runner.generate),
        "generate.prompt_file": (cfg.generate.prompt_file, Runner.generate),
        "generate.interactive": (cfg.generate.interactive, Runner.generate),
        "inspect.html": (cfg.inspect.html, Runner.inspect),
    }
    for key, (value, runner) in requested.items():
        if value and cfg.runner is Runner.train:
            yield f"{key}={value} has no effect with runner=train; add runner={runner.value}, or remove it"


def no_secrets(cfg: SftConfig) -> Iterator[str]:
    """No value is a secret: configs are written to disk and shown in reports, so secrets are passed by variable name only."""
    usual = flatten(SftConfig())
    for key, value in flatten(cfg).items():
        if key == "run_dir" or value is None or value == usual.get(key):  # the folder is made of others
            continue
        variable = key.removeprefix("cluster.env.")
        named = variable != key and is_secret_name(variable)
        found = assigns_secret if key.startswith("cluster.") else holds_secret
        if named or any(found(str(part)) for part in (value if isinstance(value, list) else [value])):
            name = variable if variable != key else "NAME"
            yield f"{key} looks like a secret; export it in your shell and pass it by name: cluster.env_pass=[...,{name}]"


def one_line_each(cfg: SftConfig) -> Iterator[str]:
    """Values that go into a batch script are one line each; variable names are valid."""
    values = {key: value for key, value in flatten(cfg).items() if key.startswith("cluster.") or key == "output_dir"}
    for key, value in values.items():
        if key == "cluster.setup":
            continue  # lines of shell, on purpose
        if any(sign in str(part) for part in (value if isinstance(value, list) else [value]) for sign in "\n\r\0"):
            yield f"{key}={value!r} must be one line"
    for key, names in (("cluster.env", [*cfg.cluster.env]), ("cluster.env_pass", cfg.cluster.env_pass)):
        yield from (
            f"{key}: {name!r} is not a valid environment variable name"
            for name in names
            if not VARIABLE.fullmatch(name)
        )


RULES: tuple[Rule, ...] = (
    two_betas, known_words, run_name, model_is_set, export_formats, data_is_set, roles_are_known, runner_is_set,
    splits_sum_to_one, length_of_training, batch_size,
    schedule, layout, foreign_model, fp8, optimizer_state, routers, lora_targets, lora_start, frozen_parts, quantized_base,
    added_tokens, optimizer_warm_start, no_secrets, one_line_each, *EVAL_RULES, *FILE_RULES,
)  # fmt: skip


def broken_rules(cfg: SftConfig) -> list[str]:
    """The messages of all rules."""
    return list(chain.from_iterable(rule(cfg) for rule in RULES))
