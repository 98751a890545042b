"""Shell completion: wraps Hydra's, which does not support `python -m` and `peft=null` and lists the `schema/` group."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from sft_hydra.config.argv import normalize_argv
from sft_hydra.config.store import register
from sft_hydra.errors import ConfigError
from sft_hydra.paths import conf_dir

BASH = r"""_sft_hydra() {
  COMPREPLY=()
  [[ $COMP_LINE == *sft?hydra* ]] || return
  COMPREPLY=($(compgen -o nospace -W "$(COMP_LINE="$COMP_LINE" python -m sft_hydra -sc query=bash)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _sft_hydra sft-hydra python python3
"""
_COMMAND = re.compile(r"^\s*(\S*python\S*\s+-m\s+sft_hydra|\S*sft-hydra)(?=\s|$)")


def complete(argv: Sequence[str]) -> None:
    """`-sc install=bash` prints the shell function; `-sc query=bash` the completions of COMP_LINE."""
    if "install=bash" in argv:
        print(BASH, end="")
    elif "query=bash" in argv:
        print(" ".join(candidates(os.environ.get("COMP_LINE", ""))))
    else:
        raise ConfigError(
            'shell completion: put this into your ~/.bashrc: eval "$(python -m sft_hydra -sc install=bash)"'
        )


def candidates(line: str) -> list[str]:
    """Completions of the last word of a command line."""
    words = _COMMAND.sub("", line).split(" ")
    register()
    arguments = normalize_argv([word for word in words[:-1] if word and not word.startswith("-")])
    os.environ["COMP_LINE"] = " ".join(["sft_hydra", *arguments, words[-1]])
    sys.argv = ["sft_hydra", "-sc", "query=bash"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_no_job)()
    return [word for word in shown.getvalue().split() if not word.startswith("schema")]


def _no_job(config: DictConfig) -> None:
    raise AssertionError("completion must not compose a job")
