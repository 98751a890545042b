"""Measurements on a GPU keep their figures whatever fails, end in time, and run as a rehearsal on a CPU."""

import argparse
import gc
import json
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.packed import make_row

from sft_hydra.planning.estimate import estimate_memory
from sft_hydra.planning.layout import Layout
from sft_hydra.schema.train import Precision, Recompute

GIB = 2**30


@pytest.fixture(autouse=True)
def scripts(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))


@pytest.mark.parametrize("name", ["qwen3_0_6b_full", "qwen3_8b_lora", "nano3_cut"])
def test_cases_for_a_gpu_fit_80_gb(name):
    from train_step_cases import cases, make_cfg

    case = cases()[name]
    case.architecture.setdefault("vocab_size", 151936)
    assert estimate_memory(make_cfg(case), case.architecture, Layout(), Precision.bf16).total < 70 * GIB


def test_figures_stay_if_the_memory_of_a_step_cannot_be_measured(monkeypatch, tmp_path):
    import train_step
    from train_step_cases import cases

    monkeypatch.setattr(train_step.sys, "executable", "/bin/false")  # of the process that measures memory
    case = cases()["rehearsal"]
    arguments = argparse.Namespace(
        case="rehearsal",
        compile=False,
        threads=1,
        steps=2,
        out=tmp_path,
        profile=False,
        rows=tmp_path / "rows.npz",
        data=None,
    )
    train_step.measure(case, [make_row([60, 68], seed) for seed in range(8)], arguments)
    (ours,) = json.loads((tmp_path / "train_step_rehearsal.json").read_text())["parties"].values()
    assert ours["median_seconds"] > 0
    assert ours["peak_memory_gib"] is None
    assert ours["peak_memory_failed"] == "exit code 1: nothing on stderr"


def test_a_party_that_is_closed_leaves_no_model():
    from train_step_cases import cases
    from train_step_peers import Ours

    case = replace(cases()["rehearsal"], options={"recompute": Recompute.full})
    party = Ours(case, [make_row([60, 68], seed) for seed in range(2)])
    party.step()
    weight = weakref.ref(next(party.model.blocks[0].parameters()))
    gc.disable()  # what is left is not freed by chance
    try:
        party.close()
        assert weight() is None
    finally:
        gc.enable()


def test_rows_are_the_same_from_their_file(tmp_path):
    from rows_file import load_rows, save_rows

    rows = [make_row([5, 9, 1], 0), make_row([30], 1)]
    save_rows(tmp_path / "rows.npz", rows, 97)
    loaded, vocab = load_rows(tmp_path / "rows.npz")
    assert vocab == 97
    for ours, theirs in zip(rows, loaded, strict=True):
        for name in ("input_ids", "loss_mask", "seq_start_id", "source_id"):
            assert (getattr(ours, name) == getattr(theirs, name)).all()
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    assert max(row.input_ids.max() for row in load_rows(tmp_path / "rows.npz", 50)[0]) < 50


def test_the_longest_row_is_where_the_line_reaches_the_memory():
    from longest_row import longest

    assert longest({16384: 20.0, 32768: 30.0, 65536: 50.0}, 70.0) == 98304
    assert longest({16384: 20.0}, 70.0) is None


def test_tasks_end_in_time_and_keep_what_they_wrote(monkeypatch, tmp_path, capsys):
    import on_gpu

    monkeypatch.setattr(on_gpu, "SHORTEST", 0.5)
    result = tmp_path / "figures.json"
    party = '{"median_seconds": 2, "spread_percent": 1, "tokens_per_second": {"real": 1234}, "mfu_percent": {"needed": 1, "published": 2}, "times_ours_seconds": 1}'
    hangs = f"import time; open({str(result)!r}, 'w').write('{{\"parties\": {{\"ours\": {party}}}}}'); time.sleep(600)"
    fails = "print('what went wrong'); raise SystemExit(3)"
    tasks = [on_gpu.Task(name, [sys.executable, "-c", code], 600, file) for name, code, file in (
        ("fails", fails, None), ("hangs", hangs, "figures.json"), ("late", "", None))]  # fmt: skip
    on_gpu.run_all(tasks, time.monotonic() + 4, tmp_path)
    first, second, third = json.loads((tmp_path / "on_gpu.json").read_text())["tasks"]
    assert (first["ended"], first["last_lines"]) == ("exit code 3", ["what went wrong"])
    assert second["ended"].startswith("stopped after")
    assert second["result"]["parties"]["ours"]["median_seconds"] == 2
    assert third == {"task": "late", "ended": "left out: no time"}
    assert "ours: 2 s a step (1 % spread), 1,234 tokens/s" in capsys.readouterr().out


@pytest.mark.slow
def test_rehearsal(repo, tmp_path):
    command = [sys.executable, str(repo / "benchmarks" / "on_gpu.py"), "--rehearse", "--out", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tasks = json.loads((tmp_path / "on_gpu.json").read_text())["tasks"]
    assert {task["task"]: task["ended"] for task in tasks} == dict.fromkeys(
        ("rows", "smoke", "train_step rehearsal --alone --profile", "tests", "longest_row rehearsal"), "exit code 0"
    )
    results = [task["result"] for task in tasks if "result" in task]
    assert results[0]["parties"]["sft_hydra"]["peak_memory_gib"] > 0
    assert list(results[1]["peak_gib"]) == ["256", "512"]
    assert "tokens/s, MFU" in printed
    assert "Self CPU" in (tmp_path / "on_gpu.log").read_text()


def test_smoke_names_what_fails(monkeypatch, capsys):
    import smoke

    case = smoke.runs("cpu", compiled=False)["qwen3"]
    assert (
        smoke.runs_two_steps("broken", replace(case, architecture=case.architecture | {"num_attention_heads": 0}))
        is False
    )
    assert "broken: FAILED" in capsys.readouterr().out
    assert torch.is_grad_enabled()
    assert Path(smoke.__file__).name == "smoke.py"
