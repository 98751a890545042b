"""Writes docs/experiments.md from conf/experiment and the plan of each: python docs/experiments_page.py > docs/experiments.md

Nothing here is measured: every figure is what `dry_run=true` says.
"""

import os
import re
import sys
import tempfile
from contextlib import contextmanager
from collections.abc import Iterator
from pathlib import Path

from sft_hydra.config.compose import compose
from sft_hydra.config.resolve import resolve
from sft_hydra.launch.dry_run import describe
from sft_hydra.paths import conf_dir
from sft_hydra.schema.config import SftConfig

PROGRESS = (
    '{"format": 1, "sizes": {"seq_length": 2048, "global_batch_size": 256, "micro_batch_size": 16}, '
    '"rates": {"lr": 3e-4, "matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 4e-3}}'
)
HEAD = """# Experiments

An experiment is a file in `conf/experiment/`: a model, data, rates, a batch and a layout that belong together. Anything on the
command line goes before it. A file of your own is `experiment=mine.yaml`; [Extending](extending.md) shows one.

The figures come from `dry_run=true`, which reads no GPU. **They are estimates, not measurements**: memory is the peak of one
rank by the [formulas](layouts.md#ask-before-you-queue). Steps are known where the experiment gives them, else when the data is
prepared. Speeds are not shown, because these runs were not timed; [Performance](performance.md) has what was measured.

`python docs/experiments_page.py` writes this page, and a test compares the two.
"""


def commands() -> dict[str, tuple[str, str]]:
    """Experiment -> (what it is, the arguments of the command its file opens with)."""
    found = {}
    for file in sorted(conf_dir().glob("experiment/*.yaml")):
        if match := re.search(r"^# (.+?): python -m sft_hydra (.+)$", file.read_text(encoding="utf-8"), re.M):
            found[file.stem] = match[1], match[2].replace(" dry_run=true", "")
    return {name: said for name, said in found.items() if name != "null"}


@contextmanager
def newcomer() -> Iterator[None]:
    """A folder with the files that the commands name."""
    back = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("chats.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
            Path("packed").mkdir()
            Path("earlier/step_500").mkdir(parents=True)
            Path("earlier/step_500/state.json").write_text(PROGRESS)
            Path("earlier/step_500/COMPLETE").touch()
            yield
        finally:
            os.chdir(back)


def plan(arguments: str) -> tuple[SftConfig, dict[str, str]]:
    """The config of a command, and the lines of its plan by name."""
    composed = compose([word for word in arguments.split() if word != "cluster.partition=batch"] + ["dry_run=true"])
    assert composed is not None
    cfg = resolve(composed.config, composed.overrides, launcher=composed.launcher)
    lines = [line for line in describe(cfg).splitlines() if not line.startswith("advice")]
    return cfg, {name: value for name, value in (re.split(r"  +", line, maxsplit=1) for line in lines)}
