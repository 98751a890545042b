"""The layout that `parallel=auto` takes: what peers found best, always the fastest that fits, and it trains like one rank."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft_hydra.cli import command
from sft_hydra.config.compose import compose
from sft_hydra.config.resolve import to_dataclasses
from sft_hydra.errors import ConfigError
from sft_hydra.planning.auto_parallel import choose, with_auto_parallel
from sft_hydra.planning.topology import possible_layouts
from sft_hydra.schema.config import SftConfig

NODE = "cluster.gpus_per_node=8"
LORA = "peft=lora"
SAVING = "train.recompute=full"
H200 = "cluster.gpu_memory_gib=141"
# command -> sizes other than 1; None: nothing fits
CASES = {
    f"model=qwen3_0_6b {NODE}": {},
    f"model=qwen3_0_6b {NODE} seq_length=32768 {SAVING}": {},
    f"model=qwen3_0_6b {NODE} seq_length=1048576 {SAVING} train.global_batch_size=1": {"cp": 8},
    f"model=qwen3_0_6b {NODE} train.global_batch_size=4": {"cp": 2},
    f"model=qwen3_0_6b {NODE} cluster.nodes=2 train.global_batch_size=16": {},
    "model=qwen3_8b peft=lora": {},
    f"model=qwen3_8b {NODE}": {},
    f"model=qwen3_8b {NODE} {LORA} seq_length=32768 {SAVING}": {},
    f"model=qwen3_8b {NODE} seq_length=262144 {SAVING} train.global_batch_size=8": {"cp": 4},
    f"model=qwen3_8b {NODE} parallel.tp=2": {"tp": 2},
    f"model=nano3 {NODE} seq_length=8192 {SAVING} train.global_batch_size=128": {"ep": 8},
    f"model=nano3 {NODE} seq_length=8192 {LORA} train.global_batch_size=128": {"tp": 2, "ep": 8},
    f"model=nano3 {NODE} cluster.nodes=2 {SAVING} train.global_batch_size=128": {"pp": 2, "ep": 8},
    f"model=nano3 {SAVING}": None,
    f"model=super3 {NODE} cluster.nodes=4 {SAVING} train.global_batch_size=128": {"ep": 32},
    f"model=super3 {NODE} cluster.nodes=3 {SAVING} train.global_batch_size=96 {H200}": {"pp": 3, "ep": 8},
    f"model=super3 {NODE} cluster.nodes=2 {SAVING} {LORA} train.global_batch_size=128": {"pp": 2, "ep": 8},
    f"model=super3 {NODE} {SAVING} train.global_batch_size=128": None,
    "model=tiny cluster.gpus_per_node=2": {},
    "model=tiny cluster.gpus_per_node=4 train.global_batch_size=2": {"cp": 2},
    "model=tiny_nemotron_h cluster.gpus_per_node=2": {},
    "model=tiny_nemotron_h cluster.gpus_per_node=2 train.global_batch_size=1": {"pp": 2},
}
TRAINED = [
    pytest.param(text, marks=pytest.mark.slow if "gpus_per_node=4" in text else pytest.mark.distributed)
    for text in CASES
    if "model=tiny" in text
]


def config(text: str) -> SftConfig:
    chats = [] if "tiny" in text else ["data=jsonl", "data.path=chats.jsonl"]
    composed = compose([*text.split(), *chats])
    assert composed is not None
    cfg, problems = to_dataclasses(composed.config)
    assert cfg is not None, problems
    return cfg


@pytest.mark.parametrize("text", CASES)
def test_the_fastest_that_fits(text: str) -> None:
    cfg = config(text)
    architecture = cfg.model.architecture
    layout, weighed = choose(cfg, architecture)
    assert {choice.layout for choice in weighed} == set(possible_layouts(cfg, architecture))
    assert weighed[0].layout == layout
    fitting = [choice for choice in weighed if choice.fits]
    if CASES[text] is None:
        assert not fitting
        assert weighed[0].memory == min(choice.memory for choice in weighed)
        return
    assert weighed[0].seconds == min(choice.seconds for choice in fitting)
    sizes = {name: getattr(layout, name) for name in ("tp", "pp", "cp", "ep")}
    assert {name: size for name, size in sizes.items() if size > 1} == CASES[text]


def test_the_table_of_the_docs(repo: Path) -> None:
    table = re.findall(r"^\| `(model=.*)` \| (.*) \|$", (repo / "docs" / "layouts.md").read_text(), re.MULTILINE)
    assert len(table) == 8
    for text, plan in table:
        cfg = config(text)
        layout, _ = choose(cfg, cfg.model.architecture)
        sizes = {name: getattr(layout, name) for name in ("tp", "pp", "cp", "ep")}
        split = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
        assert plan == (split or ("data parallel" if layout.dp > 1 else "as it is"))


def test_a_dry_run_says_what_was_weighed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command([f"output_dir={tmp_path}", "model=nano3", NODE, SAVING, "train.global_batch_size=128", "dry_run=true"])
    plan = capsys.readouterr().out
    assert re.search(r"^layout +world 8 = 1 node\(s\) x 8: tp=1 pp=1 cp=1 ep=8 dp=8$", plan, re.MULTILINE)
    assert re.search(
        r"^chosen +fastest of \d+ valid layouts, \d+ of which fit in cluster.gpu_memory_gib=80; tp=1", plan, re.M
    )
    seconds = [float(text) for text in re.findall(r"ep=\d+: (\S+) s a step", plan)]
    assert len(seconds) == 4
    assert seconds == sorted(seconds)


def test_sizes_left_open_fit_the_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four rows for eight ranks: refused only if no size is left that could take up the ranks."""
    (tmp_path / "chats.jsonl").write_text("")
    chats = ["data=jsonl", f"data.path={tmp_path}/chats.jsonl"]
    few = [f"output_dir={tmp_path}", *chats, "model=qwen3_0_6b", NODE, "train.global_batch_size=4", "dry_run=true"]
    command(few)
    assert "tp=1 pp=1 cp=2 ep=1 dp=4" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"use train\.global_batch_size=8"):
        command([*few, "parallel=single"])


@pytest.mark.parametrize(
    "text", ["model=tiny", "model=tiny cluster.gpus_per_node=2 dry_run=true", "runner=inspect " + NODE]
)
def test_sizes_stay_open_where_no_layout_is_chosen(text: str) -> None:
    parallel = with_auto_parallel(config(text)).parallel
    assert (parallel.tp, parallel.pp, parallel.cp, parallel.ep) == (None, None, None, None)


@pytest.mark.parametrize("text", TRAINED)
def test_the_plan_trains_like_one_rank(text: str, tmp_path: Path) -> None:
    common = ["train.train_iters=2", "train.global_batch_size=2", "eval.samples=[]", "eval.exact_match.path=null"]
    common += ["optimizer=adamw", "data.sample=100", "export.auto=false", f"output_dir={tmp_path}"]

    def losses(name: str, *overrides: str) -> list[float]:
        words = [sys.executable, "-m", "sft_hydra", *common, f"name={name}", *overrides]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    model, cluster, *batch = text.split()
    assert losses("many", model, cluster, *batch) == pytest.approx(losses("one", model, *batch), rel=1e-5)
    resolved = (tmp_path / "many" / "resolved.yaml").read_text()
    sizes = {
        name: int(re.findall(rf"^  {name}: (\d+)$", resolved, re.MULTILINE)[0]) for name in ("tp", "pp", "cp", "ep")
    }
    assert {name: size for name, size in sizes.items() if size > 1} == CASES[text]
