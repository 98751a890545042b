"""Figures under load, printed with what was done. Each takes minutes; none is part of the tests.

PYTHONPATH=tests python tests/reliability/load.py rows --rows 1000000 --times 17
PYTHONPATH=tests python tests/reliability/load.py soak --steps 10000
PYTHONPATH=tests python tests/reliability/load.py sweep --jobs 1000
"""

import argparse
import contextlib
import io
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for function, option, usual in ((rows, "rows", 1_000_000), (soak, "steps", 10_000), (sweep, "jobs", 1000)):
        command = commands.add_parser(function.__name__)
        command.add_argument(f"--{option}", dest="count", type=int, default=usual)
        command.set_defaults(function=function)
    commands.choices["rows"].add_argument("--times", type=int, default=1, help="how much longer rows are")
    given = vars(parser.parse_args())
    function = given.pop("function")
    with tempfile.TemporaryDirectory() as folder:
        function(folder=Path(folder), **given)


def rows(count: int, folder: Path, times: int) -> None:
    """A preparation by two workers, with the bundled tokenizer."""
    from support.chats import data_cfg

    from sft_hydra.data_prep.prepare import prepare

    path = folder / "rows.jsonl"
    with open(path, "w") as stream:
        for number in range(count):
            text = f"What is {number} plus {number}? " * (times * (1 + number % 8))
            answer = f"It is {2 * number}, as anybody can see. " * (times * (1 + number % 11))
            talk = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": talk}) + "\n")
    cfg = data_cfg(folder / "out", rows=path)
    cfg.seq_length, cfg.data.num_workers = 8192, 2
    began = time.monotonic()
    source = prepare(cfg).metadata["sources"][0]
    seconds = time.monotonic() - began
    assert source["rows"] == source["kept"] + source["rejected"] == count
    own, helpers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"{count:,} rows, {path.stat().st_size / 1e6:,.0f} MB, {source['tokens']:,} tokens: {seconds:.0f} s")
    print(f"largest memory: this process {own:.0f} MiB, a helper {helpers:.0f} MiB")


def soak(steps: int, folder: Path) -> None:
    """Steps of a tiny model with rows from shards, a checkpoint in the background every 100."""
    import torch
    from support.chats import data_cfg, question, write_jsonl
    from support.packed import ARCHITECTURES, make_model

    from sft_hydra.checkpoint.state import Saver
    from sft_hydra.data_prep.blend import train_rows
    from sft_hydra.data_prep.prepare import prepare
    from sft_hydra.engine.loop import StepResult, TrainState, train_loop
    from sft_hydra.engine.optimizer import build_optimizer
    from sft_hydra.planning.recipe import recipe_of

    torch.set_num_threads(1)
    cfg = data_cfg(folder, rows=write_jsonl(folder / "rows.jsonl", [question(number) for number in range(20_000)]))
    cfg.data.num_shards = 8
    cfg.train.global_batch_size, cfg.train.train_iters = 1, steps
    packed = prepare(cfg)
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 768}
    model = make_model(ARCHITECTURES["qwen3"] | sizes)
    optimizer, state = build_optimizer(model, cfg.optimizer, cfg.train.precision), TrainState()
    saver = Saver(folder / "checkpoints", recipe_of(cfg), cfg.checkpoint)
    seen: list[tuple[int, int, int]] = []

    def after_step(result: StepResult) -> None:
        if result.step % 100 == 0:
            saver.save(model, optimizer, state)
        if result.step % (steps // 10) == 0:
            saver.wait()
            kib = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
            seen.append((kib // 1024, len(os.listdir("/proc/self/fd")), threading.active_count()))
            print(f"step {result.step:,}: {seen[-1][0]} MiB, {seen[-1][1]} files, {seen[-1][2]} threads", flush=True)

    began = time.monotonic()
    train_loop(
        model,
        optimizer,
        train_rows(packed, cfg),
        state,
        recipe_of(cfg),
        steps,
        after_step=after_step,
        should_stop=lambda: False,
    )
    saver.wait()
    print(f"{steps:,} steps, {steps // 100} checkpoints: {time.monotonic() - began:.0f} s")
    memory, files, threads = zip(*seen[1:], strict=True)  # the first tenth fills caches
    assert max(memory) - memory[0] < 30, "memory grows"
    assert max(files) == min(files), "file handles grow"
    assert max(threads) == min(threads), "threads grow"


def sweep(jobs: int, folder: Path) -> None:
    """Every job of a sweep resolved and checked, as a dry run."""
    from sft_hydra.cli import command

    os.chdir(folder)
    rates = ",".join(f"{1e-5 * (1 + number):.6f}" for number in range(jobs))
    printed = io.StringIO()
    began = time.monotonic()
    with contextlib.redirect_stdout(printed):
        code = command(["-m", f"optimizer.lr={rates}", "dry_run=true", "name=sweep"])
    seconds = time.monotonic() - began
    print(f"{jobs:,} jobs resolved in {seconds:.1f} s ({1000 * seconds / jobs:.0f} ms a job), exit code {code}")


if __name__ == "__main__":
    main()
