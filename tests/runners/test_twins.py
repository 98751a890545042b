"""Twins of the recipes: the same YAML with another model, other files, less work and a smaller cluster trains.

What is overridden, and nothing else:

- `model.path`: a tiny folder of the recipe's architecture, with the tokenizer that the demo has
- the files: paths of sources; formats, filters and splits stay
- the length: `train.train_iters`, and rows of a step where there are 32 or more (`train.global_batch_size`)
- the cluster: ranks of this machine, and sizes of a layout that these cannot hold
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.packed import DENSE, HYBRID, make_model

from sft_hydra.chat.tokenizer import BUNDLED
from sft_hydra.cli import command
from sft_hydra.models.build import as_transformers
from sft_hydra.observe.metrics import read_metrics
from sft_hydra.paths import conf_dir

VOCABULARY = 1024
NEMOTRON = HYBRID | {
    "vocab_size": VOCABULARY, "hybrid_override_pattern": "M*E-", "chunk_size": 32, "mamba_num_heads": 8, "n_groups": 4,
    "n_routed_experts": 8,
}  # fmt: skip
QWEN = DENSE | {"model_type": "qwen3", "vocab_size": VOCABULARY, "head_dim": 8, "tie_word_embeddings": True}
NVIDIA = ("science", "instruction_following_chat", "math_proofs", "swe", "agentic", "competitive_programming")
LOCAL = ["cluster=local", "cluster.nodes=1"]
TWO_STEPS = "train.train_iters=2"
FEW_ROWS = "train.global_batch_size=2"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by family."""
    root = tmp_path_factory.mktemp("models")
    for name, architecture in (("nemotron", NEMOTRON), ("qwen", QWEN)):
        as_transformers(make_model(architecture)).save_pretrained(root / name)
        for file in BUNDLED.iterdir():
            shutil.copy(file, root / name)
    return {name: root / name for name in ("nemotron", "qwen")}


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that the test runs in, files of every format that a recipe reads."""
    monkeypatch.chdir(tmp_path)
    rows: dict[str, list[dict[str, Any]]] = {"chats": [], "magpie": [], "mmlu": [], "gsm8k": []}
    for n in range(400):
        question, answer = f"What is {n} plus {n}?", f"It is {2 * n}."
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows["chats"].append(
            {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                "used_in": ["nano_v3"],
            }
        )
        rows["magpie"].append({"conversations": talk})
        rows["mmlu"].append({"question": question, "choices": ["1", "2", "3", "4"], "answer": n % 4, "subject": "sums"})
        rows["gsm8k"].append({"question": question, "answer": f"Add: <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"})
    for name, lines in rows.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def steps_of(name: str) -> list[int]:
    return [line["step"] for line in read_metrics(Path("outputs") / name / "metrics.jsonl") if "loss" in line]


def trains(*arguments: str) -> None:
    assert command([*arguments, "name=twin", "data.num_workers=1"]) == 0
    assert steps_of("twin") == [1, 2]


def sources(*names: str, file: str = "chats.jsonl") -> list[str]:
    return [f"data.sources.{name}.path={file}" for name in names]


@pytest.mark.parametrize(
    "cluster",
    [
        ["cluster.gpus_per_node=1", "parallel.tp=1", "parallel.cp=1"],
        pytest.param(["cluster.gpus_per_node=8"], marks=pytest.mark.slow),  # tp 4 and cp 2, as the recipe says
    ],
)
def test_nano3(cluster: list[str], folders: dict[str, Path], chats: None) -> None:
    trains("experiment=nano3", f"model.path={folders['nemotron']}", *sources(*NVIDIA), TWO_STEPS, *LOCAL, *cluster)


@pytest.mark.parametrize(
    ("option", "pattern", "heads"), [("nano_4b", "M-M*-", ()), ("lightning", "MEM*E", ("eh_proj", "enorm", "norm"))]
)
def test_smaller_and_later_hybrids(
    option: str, pattern: str, heads: tuple[str, ...], tmp_path: Path, chats: None
) -> None:
    """Of the option's shape in small: loaded from what transformers writes, with the older name of the heads' size, trained and
    exported, with the tensors of multi-token prediction as they were."""
    arch = yaml.safe_load((conf_dir() / f"model/{option}.yaml").read_text())["architecture"]
    small = {key: value for key, value in (NEMOTRON | {"head_dim": 24}).items() if key in arch or "expert" not in key}
    source = tmp_path / "source"
    as_transformers(
        make_model(arch | small | {"hybrid_override_pattern": pattern, "num_hidden_layers": 5})
    ).save_pretrained(source)
    for file in BUNDLED.iterdir():
        shutil.copy(file, source)
    config = json.loads((source / "config.json").read_text())
    config["attention_head_dim"] = config.pop("head_dim")
    (source / "config.json").write_text(json.dumps(config))
    mtp = {f"mtp.layers.0.{name}.weight": torch.arange(6.0) for name in heads}
    before = load_file(source / "model.safetensors") | mtp
    save_file(before, source / "model.safetensors", metadata={"format": "pt"})
    trains(
        f"model={option}", f"model.path={source}", "data=jsonl", "data.path=chats.jsonl", "seq_length=128", TWO_STEPS, FEW_ROWS,
        "optimizer.lr=1e-3",
    )  # fmt: skip
    after = load_file(Path("outputs/twin/hf/model.safetensors"))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in mtp.items())
    assert not all(torch.equal(after[name].float(), before[name].float()) for name in before)


def test_nano3_lora(folders: dict[str, Path], chats: None) -> None:
    trains(
        "experiment=nano3_lora", f"model.path={folders['nemotron']}", *sources(*NVIDIA), TWO_STEPS, FEW_ROWS,
        "cluster.gpus_per_node=1",
    )  # fmt: skip


@pytest.mark.parametrize(
    "cluster",
    [
        ["cluster.gpus_per_node=2", "parallel.tp=1", "parallel.pp=2"],
        pytest.param(["cluster.gpus_per_node=8", "parallel.tp=2"], marks=pytest.mark.slow),  # pp 4, as the recipe says
    ],
)
def test_super3(cluster: list[str], folders: dict[str, Path], chats: None) -> None:
    trains(
        "experiment=super3", f"model.path={folders['nemotron']}", *sources(*NVIDIA), TWO_STEPS, "train.global_batch_size=4",
        *LOCAL, *cluster,
    )  # fmt: skip


@pytest.mark.slow
def test_step_default(folders: dict[str, Path], chats: None) -> None:
    trains(
        "experiment=step_default", f"model.path={folders['nemotron']}", *sources(*NVIDIA), TWO_STEPS, *LOCAL,
        "cluster.gpus_per_node=4", "parallel.ep=4",
    )  # fmt: skip


def test_step_tiny(folders: dict[str, Path], chats: None) -> None:
    """On shards that another command has packed."""
    recipe = [
        "experiment=step_tiny", "data.packed_dir=packed", f"model.path={folders['nemotron']}", *sources(*NVIDIA), *LOCAL,
        "cluster.gpus_per_node=1", "parallel.tp=1", "parallel.ep=1",
    ]  # fmt: skip
    assert command([*recipe, "runner=data_prep", "data.prepare=auto", "data.num_workers=1"]) == 0
    trains(*recipe, TWO_STEPS)


def test_qwen3_magpie(folders: dict[str, Path], chats: None) -> None:
    trains(
        "experiment=qwen3_magpie", f"model.path={folders['qwen']}", *sources("magpie", file="magpie.jsonl"),
        "train.train_samples=null", TWO_STEPS, FEW_ROWS,
    )  # fmt: skip


def test_nemo_rl(folders: dict[str, Path], chats: None) -> None:
    trains(
        "experiment=nemo_rl", "model=qwen3_0_6b", f"model.path={folders['qwen']}", "data=jsonl", "data.path=chats.jsonl",
        TWO_STEPS, FEW_ROWS,
    )  # fmt: skip


def test_nanochat(folders: dict[str, Path], chats: None) -> None:
    """On a checkpoint that an earlier run has left; length, batch, rates and optimizer are its own."""
    earlier = [
        "name=earlier", "model=qwen3_0_6b", f"model.path={folders['qwen']}", "optimizer=muon", "optimizer.lr=0.004",
        "optimizer.matrix_lr=0.02", "optimizer.embedding_lr=0.3", "optimizer.unembedding_lr=0.004", "seq_length=512",
        "train.global_batch_size=4", "train.train_iters=1", "data=jsonl", "data.path=chats.jsonl", "export.auto=false",
        "data.num_workers=1",
    ]  # fmt: skip
    assert command(earlier) == 0
    trains(
        "experiment=nanochat", "checkpoint.load=outputs/earlier/checkpoints", "model=qwen3_0_6b",
        f"model.path={folders['qwen']}", "data.sources.smoltalk.path=chats.jsonl", "data.sources.mmlu.path=mmlu.jsonl",
        "data.sources.gsm8k.path=gsm8k.jsonl", "data.sample=40", TWO_STEPS,
        "eval.chatcore_tasks=[spelling_bee]", "eval.chatcore_max_generative=2", "eval.max_new_tokens=4",
    )  # fmt: skip
    first = next(line for line in read_metrics(Path("outputs/twin/metrics.jsonl")) if "loss" in line)
    assert first["lr"] == pytest.approx(0.8 * 0.02)  # of what the checkpoint was trained with
