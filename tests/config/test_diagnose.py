"""What a wrong command is answered: every problem at once, with the key, the value and the fix; and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

Problems = Callable[..., list[str]]

CASES = [
    (["model=qwen4"], "model=qwen4: no such option; did you mean qwen3_8b? model has: hf, lightning, nano3, "),
    (["model=null"], "model=null: no such option"),
    (["optimizer.lrr=1"], "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
    (["+train.lrr=1"], "train.lrr: unknown key; did you mean optimizer.lr?"),
    (["++train.lrr=1"], "train.lrr: unknown key"),
    (["+unknown.key=1"], "unknown.key: unknown key; the top level has: runner, name,"),
    (["trian.epochs=2"], "trian.epochs: unknown key; did you mean train.epochs?"),
    (["lerning_rate=1"], "lerning_rate: unknown key"),
    (["hf_model_path=x"], "hf_model_path: unknown key; it is called model.path here: model.path=x"),
    (["+policy.model_name=x"], "policy.model_name: unknown key; it is called model.path here"),
    (["recipe.tensor_model_parallel_size=8"], "it is called parallel.tp here"),
    (["optimizer=adamw", "optimizer.matrix_lr=1"], "optimizer.matrix_lr: unknown key; it exists with optimizer=muon"),
    (["peft.dim=8"], "peft.dim: peft is null; set peft=lora first"),
    (["logger.wandb.project=x"], "logger.wandb is null; set logger=wandb first"),
    (["model.architecture.foo=1"], "write +model.architecture.foo=... to add it"),
    (["data.sources.code.path=x"], "write +data.sources.code.path=... to add it"),
    (["+data.sources.code.pth=x"], "data.sources.code.pth: unknown key; did you mean data.sources.code.path?"),
    (["seed.x=1"], "seed is an integer and has no keys"),
    (["seq_length=8k"], "seq_length=8k is not an integer; write seq_length=8192 (or 8000)"),
    (["seq_length=2e3"], "seq_length=2000.0 is not an integer; write seq_length=2000"),
    (["optimizer.lr=fast"], "optimizer.lr=fast is not a number"),
    (["train.compile=maybe"], "train.compile=maybe is not true or false"),
    (["train.precision=fp16"], "train.precision=fp16 is not one of bf16, fp32"),
    (["peft=lora", "peft.target_modules=q_proj"], "peft.target_modules=q_proj is not a list like [a,b]"),
    (["train"], "train: not an override; settings are written key=value, e.g. runner=train"),
    (["a b=[1"], "cannot be parsed"),
    (['generate.prompts=[Why "so"?]'], """quote text with special characters: 'generate.prompts=["...", "..."]'"""),
    (["name=what's up"], """quote text with special characters: "name='...'\""""),
    (["--lr", "seed=1"], "--lr: unknown flag; settings are written key=value, here optimizer.lr=..."),
    (["--experimental-rerun=x.pickle"], "--experimental-rerun: unknown flag"),
    (["optimizer.lr=1,2"], 'is a sweep: add -m; a list is written optimizer.lr=[1,2]'),
    (["-m", "cluster=local,slurm"], "cluster cannot be swept"),
    (["-m", "output_dir=a,b"], "output_dir cannot be swept"),
    (["-m", "hydra/launcher=submitit_local,submitit_slurm"], "hydra/launcher cannot be swept"),
    (["-m", "hydra/launcher=basic", "seed=1,2"], "hydra/launcher=basic"),
    (["cluster=local", "hydra/launcher=submitit_slurm"], "conflicts with cluster.kind=local"),
    (["cluster=slurm", "hydra/launcher=submitit_local"], "conflicts with cluster.kind=slurm"),
    (["cluster.kind=slurm"], "conflicts with cluster.kind=slurm"),
    (["-cd", "nowhere", "seed=1"], "nowhere: no such config folder"),
    (["experiment=nowhere.yaml"], "experiment=nowhere.yaml: No such file or directory"),
    (["+model.architecture._target_=os.system"], "model.architecture: _target_ is not supported"),
    (["+tokenizer.template_kwargs.x={_target_: os.system}"], "tokenizer.template_kwargs.x: _target_ is not supported"),
    (["name=???"], "name has no value; set name=..."),
    (["name=${nothing}"], "name: Interpolation key 'nothing' not found"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "expected"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_refusal(argv: list[str], expected: str, problems: Problems) -> None:
    assert any(expected in problem for problem in problems(*argv)), problems(*argv)


def test_all_problems_at_once(problems: Problems) -> None:
    found = problems(
        "model=qwen4", "optimizer.lrr=1", "trian.epochs=2", "seq_length=8k", "train.train_iters=2e3", "hf_model_path=x",
        "+train.lrr=3", "peft.dim=8", "parallel.tp=3", "data.split.train=0.5", "--lr", "1e-5", "foo",
    )  # fmt: skip
    starts = ("--lr", "foo", "model=qwen4", "optimizer.lrr", "trian.epochs", "seq_length=8k", "train.train_iters",
              "hf_model_path", "train.lrr", "peft.dim", "data.split", "parallel.tp")  # fmt: skip
    assert len(found) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(found, starts, strict=True))


def test_each_value_of_a_sweep_is_checked(problems: Problems) -> None:
    found = problems("-m", "model=tiny,qwen4", "optimizer.lr=1e-4,fast", "logger=null,wandbb")
    assert [problem.split(":")[0].split(";")[0] for problem in found] == [
        "model=qwen4", "logger=wandbb", "optimizer.lr=fast is not a number",
    ]  # fmt: skip


def test_problems_in_a_users_yaml_name_the_file(problems: Problems, empty_folder: Path) -> None:
    folder = empty_folder / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text("# @package _global_\ntrain:\n  itres: 3\noptimizer: {lr: fast}\nnonsens: 1\n")
    expected = [
        "train.itres: unknown key",
        "nonsens: unknown key",
        "optimizer.lr=fast is not a number",
        "seed=x is not",
    ]
    for argv, name in [
        (["--config-dir", "mine", "experiment=bad"], "experiment/bad.yaml"),
        (["experiment=mine/experiment/bad.yaml"], str(folder / "bad.yaml")),
    ]:
        found = problems(*argv, "seed=x")
        assert [text in problem for text, problem in zip(expected, found, strict=True)] == [True] * 4
        assert all(problem.startswith(name) for problem in found[:3])


def test_unreadable_yaml(problems: Problems, empty_folder: Path) -> None:
    (empty_folder / "bad.yaml").write_text("a: [1\n")
    assert "not valid YAML" in problems("experiment=bad.yaml")[0]


def test_defaults_of_a_users_yaml_that_are_no_option(problems: Problems, empty_folder: Path) -> None:
    (empty_folder / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: nosuch\n")
    (problem,) = problems("experiment=mine.yaml")
    assert problem.startswith(
        "a file's `defaults` choose model: nosuch, which does not exist; model has: hf, lightning, nano3"
    )
    (empty_folder / "data").mkdir()
    (empty_folder / "data" / "mine.yaml").write_text("defaults:\n  - bland\n  - _self_\n")
    (problem,) = problems("--config-dir", str(empty_folder), "data=mine")
    assert problem.startswith("a file's `defaults` choose data: bland, which does not exist; data has: blend")
