"""Writes docs/experiments.md from conf/experiment and the plan of each: python docs/experiments_page.py > docs/experiments.md

Nothing here is measured: every figure is what `dry_run=true` says.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_hydra.api import compose, plan
from sft_hydra.paths import conf_dir, state_digest
from sft_hydra.schema.cluster import ClusterKind
from sft_hydra.schema.config import SftConfig

SPEED = ("chosen", "then", "compute", "time")  # assumed, and not measured for these runs
PROGRESS = (
    '{"format": 1, "state": {"step": 500}, "sizes": {"seq_length": 2048, "global_batch_size": 256, "micro_batch_size": 16}, '
    '"rates": {"lr": 3e-4, "matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 4e-3}}'
)
HEAD = """# Experiments

An experiment is a file in `conf/experiment/`: a model, data, rates, a batch and a layout that belong together. Anything on the
command line goes before it. A file of your own is `experiment=mine.yaml`; [Extending](extending.md) shows one.

The figures come from `dry_run=true`, which reads no GPU. **They are estimates, not measurements**: memory is the peak of one
rank by the [formulas](layouts.md#ask-before-you-queue). Steps are known where the experiment gives them, else when the data is
prepared. Speeds are not shown, because these runs were not timed; [Performance](performance.md) has what was measured.

`nanochat` is planned here with a stand-in for your checkpoint: the bundled small model, 2,048 tokens, 256 rows.

`python docs/experiments_page.py` writes this page, and a test compares the two.
"""


def commands() -> dict[str, tuple[str, str]]:
    """Experiment -> (what it is, the arguments of the command its file opens with)."""
    found = {}
    for file in sorted(conf_dir().glob("experiment/*.yaml")):
        if match := re.search(r"^# (.+?): python -m sft_hydra (.+)$", file.read_text(encoding="utf-8"), re.M):
            found[file.stem] = match[1], match[2].replace(" dry_run=true", "")
    return {name: command for name, command in found.items() if name != "null"}


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
            Path("earlier/step_500/COMPLETE").write_text(state_digest(Path("earlier/step_500")))
            yield
        finally:
            os.chdir(back)


def planned(arguments: str) -> tuple[SftConfig, dict[str, str], list[str]]:
    """The config of a command, the lines of its plan by name, and the advice."""
    cfg = compose(*arguments.split())
    lines = plan(cfg).splitlines()
    pairs = [re.split(r"  +", line, maxsplit=1) for line in lines if not line.startswith("advice: ")]
    advice = [line.removeprefix("advice: ") for line in lines if line.startswith("advice: ")]
    return cfg, {name: value for name, value in pairs if name not in SPEED}, advice


def hardware(cfg: SftConfig) -> str:
    nodes = (
        f"{cfg.cluster.nodes} x {cfg.cluster.gpus_per_node or (8 if cfg.cluster.kind is ClusterKind.slurm else 1)} GPUs"
    )
    return nodes.removeprefix("1 x ").replace("1 GPUs", "1 GPU")


def section(name: str, what: str, arguments: str, lines: dict[str, str], advice: list[str]) -> str:
    width = max(map(len, lines))
    text = "\n".join(f"{key:<{width}}  {value}" for key, value in lines.items())
    notes = "".join(f"- {line}\n" for line in advice)
    body = f"## {name}\n\n{what}.\n\n    python -m sft_hydra {arguments}\n\nIts plan:\n\n```text\n{text}\n```\n"
    return body + (f"\nAdvice of the dry run:\n\n{notes}" if notes else "")


def page() -> str:
    """The text of docs/experiments.md."""
    table = ["| experiment | trains | hardware | layout | rows x tokens a step | steps | memory of a rank |"]
    table.append("|---|---|---|---|---|---|---|")
    sections = []
    with newcomer():
        for name, (what, arguments) in commands().items():
            cfg, lines, advice = planned(arguments)
            layout = lines["layout"].partition(": ")[2]
            rows = lines["batch"].partition(" rows")[0]
            memory = re.match(r"about ([\d.]+ [MG]iB)", lines["memory"])
            assert memory
            trains = f"{cfg.model.name}, {'all weights' if cfg.peft is None else 'LoRA'}"
            steps = lines["steps"].partition(" (")[0]
            table.append(
                f"| [{name}](#{name}) | {trains} | {hardware(cfg)} | {layout} | {rows} x {cfg.seq_length:,} | {steps} "
                f"| {memory[1]} |"
            )
            sections.append(section(name, what, arguments, lines, advice))
    return "\n".join([HEAD, *table, "", *sections])


if __name__ == "__main__":
    print(page(), end="")
