"""Rewrites the command line into overrides that Hydra accepts; a pure function of argv.

Hydra 1.3 does not accept `peft=null` (not a string), flags after overrides, a new entry in `data.sources`, a file as
`experiment`, a job's folder as `name`, a choice that implies another, or text that looks like a number. Each case has one
function below; text is in typed_text.py.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft_hydra.config.typed_text import quote_text

NULLABLE_GROUPS = ("peft", "logger", "experiment")
VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd")
NO_VALUE = ("-m", "--multirun", "-h", "--help", "--hydra-help", "--version", "--resolve", "-sc", "--shell-completion")
CFG_CHOICES = ("job", "hydra", "all")
INFO_CHOICES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

PEERS_VALUE = re.compile(
    r"(-r|--run)=|-c=(?!(job|hydra|all)$)"
)  # flags that Hydra has too, without a value or with others
_BARE_WORD = re.compile(r"-[\d.][^=]*|[^-~=][^=]*")
_BARE_NULL = re.compile(r"(?<![\w./'\"-])null(?![\w./'\"-])")
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
_NEW_SOURCE = re.compile(r"\+\+?data\.sources\.(?P<name>[\w-]+)(?P<rest>[.=].*)", re.DOTALL)
_JOB_NAME = re.compile(r"name=([^,'\"]+/[^,'\"]+=.*)", re.DOTALL)
_YAML_PATH = re.compile(r"'?([^,'\[\]]+\.ya?ml)'?")


def normalize_argv(argv: Sequence[str]) -> list[str]:
    """Arguments for Hydra: flags first, then overrides in their order."""
    flags, overrides = split_flags(argv)
    overrides = [_quote_job(_experiment_option(_quote_null(text))) for text in overrides]
    implied = _model_of_path(_lora_of_path(_new_sources(_packed_elsewhere(overrides))))
    return flags + [quote_text(text) for text in _slurm_both_ways(implied)]


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags with their values, overrides). Hydra rejects flags after the first override. A word after a flag that is no
    override is the flag's value, `--lr 1e-5` one text `--lr=1e-5`."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = deque(argv)
    while rest:
        text = rest.popleft()
        if text in ("--info", "-i"):  # its value is optional: the first override would be taken for it
            flags.append("--info=" + (rest.popleft() if rest and rest[0] in INFO_CHOICES else "all"))
        elif text == "-c" and rest and rest[0] not in CFG_CHOICES:  # a peer's: Hydra's own -c shows a config
            flags.append(f"-c={rest.popleft()}")
        elif text in VALUE_FLAGS and rest:
            flags += [text, rest.popleft()]
        elif text.startswith("-") and text not in NO_VALUE and rest and _BARE_WORD.fullmatch(rest[0]):
            flags.append(f"{text}={rest.popleft()}")  # none of Hydra's
        elif text.startswith("-"):
            flags.append(text)
        else:
            overrides.append(text)
    return flags, overrides


def experiment_files(argv: Sequence[str]) -> Iterator[Path]:
    """The YAML files in `experiment=<path>`."""
    for text in split_flags(argv)[1]:
        key, _, value = text.partition("=")
        if key == "experiment":
            yield from (Path(path) for path in _YAML_PATH.findall(value))


def option_of_file(path: Path) -> str:
    """Name of the group option under which a user's experiment file is registered: its absolute path."""
    return str(path.expanduser().absolute().with_suffix("")).lstrip("/")


def _quote_null(text: str) -> str:
    """`peft=null` -> `peft='null'`: the option is a file of that name. `choice(...)` would drop the quotes."""
    key, equals, value = text.partition("=")
    if not equals or key not in NULLABLE_GROUPS:
        return text
    choice = _CHOICE.fullmatch(value)
    return f"{key}={_BARE_NULL.sub(repr('null'), choice[1] if choice else value)}"


def _experiment_option(text: str) -> str:
    """`experiment=mine.yaml` -> the option that stands for this file."""
    key, equals, value = text.partition("=")
    if not equals or key != "experiment":
        return text
    return f"experiment={_YAML_PATH.sub(lambda match: repr(option_of_file(Path(match[1]))), value)}"


def _quote_job(text: str) -> str:
    """`name=mine/peft=null,seed=1`, the folder of a sweep's job, is one string, not a sweep."""
    return _JOB_NAME.sub(r"name='\1'", text)


def _new_sources(overrides: list[str]) -> list[str]:
    """`+data.sources.code.path=x` -> an empty source `code` first, then `data.sources.code.path=x`.

    All new sources go into one override, because a sweep keeps only the last of several with the same key.
    """
    names: list[str] = []
    rewritten = []
    for text in overrides:
        new = _NEW_SOURCE.fullmatch(text)
        if new:
            names.append(new["name"])
            text = f"data.sources.{new['name']}{new['rest']}"
        rewritten.append(text)
    if not names:
        return rewritten
    entries = ", ".join(f"{name}: {{}}" for name in dict.fromkeys(names))
    return [f"++data.sources={{{entries}}}", *rewritten]


def _lora_of_path(overrides: list[str]) -> list[str]:
    """`peft.path=<adapter>` implies `peft=lora`, which adds the section; unless a model is chosen, also the adapter's base
    model with the defaults of `model=hf` instead of those of the demo."""
    keys = {text.lstrip("+").partition("=")[0] for text in overrides}
    if "peft.path" not in keys:
        return overrides
    lora = [] if "peft" in keys else ["peft=lora"]
    base = [] if keys & {"model", "model.path", "experiment"} else ["model=hf", "model.path=null"]
    return [*lora, *base, *overrides]


def _packed_elsewhere(overrides: list[str]) -> list[str]:
    """`data.trust_foreign=true` implies `data=packed`, so that shards of another tool replace the demo's sources."""
    if "data.trust_foreign=true" in (text.lower() for text in overrides) and not any(
        text.startswith("data=") for text in overrides
    ):
        return ["data=packed", *overrides]
    return overrides


def _model_of_path(overrides: list[str]) -> list[str]:
    """`model.path=...` implies `model=hf` unless a model is chosen: the default toy model has its own learning rates."""
    keys = {text.lstrip("+").partition("=")[0] for text in overrides}
    if "model.path" in keys and not keys & {"model", "experiment"} and "model.path=null" not in overrides:
        return ["model=hf", *overrides]
    return overrides


def _slurm_both_ways(overrides: list[str]) -> list[str]:
    """`hydra/launcher=submitit_slurm` implies `cluster=slurm`; `conf/cluster/slurm.yaml` implies the launcher."""
    if "hydra/launcher=submitit_slurm" in overrides and not any(text.startswith("cluster=") for text in overrides):
        return ["cluster=slurm", *overrides]
    return overrides
