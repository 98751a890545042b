"""resolved.yaml: what is read is what was written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sft_hydra.config import serialize
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import SourceConfig, TokenizerConfig
from sft_hydra.schema.logger import LoggerConfig, MlflowConfig, WandbConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.optim import Muon
from sft_hydra.schema.peft import LoraConfig

TEMPLATE = "{% for m in messages %}${{ m }} ${x} \\${y} 'a' \"b\": # no\n\tä{% endfor %}"


def test_round_trip(tmp_path: Path) -> None:
    cfg = SftConfig(
        model=ModelConfig(name="1e-4", architecture={"rope": {"theta": 1000.0, "list": [1, None, "null"]}}),
        tokenizer=TokenizerConfig(chat_template=TEMPLATE, template_kwargs={"thinking": True}),
        optimizer=Muon(matrix_lr=0.1),
        peft=LoraConfig(target_modules=["*.q_proj"]),
        logger=LoggerConfig(wandb=WandbConfig(project="p"), mlflow=MlflowConfig()),
        run_dir="null",
    )
    cfg.data.sources = {"code": SourceConfig(path="a.jsonl", weight=0.3)}
    serialize.save(cfg, tmp_path / "run" / "resolved.yaml")
    assert serialize.load(tmp_path / "run" / "resolved.yaml") == cfg
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["resolved.yaml"]


@pytest.mark.parametrize(
    "argv", [[], ["experiment=super3", "dry_run=true"], ["logger=wandb", "peft=lora", "dry_run=true"]]
)
def test_round_trip_of_commands(argv: list[str], resolved: Callable[..., SftConfig], tmp_path: Path) -> None:
    cfg = resolved(*argv)
    serialize.save(cfg, tmp_path / "resolved.yaml")
    assert serialize.load(tmp_path / "resolved.yaml") == cfg


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "optimizer: {kind: adamw}\nmodel: {name: x}\ntrain: {nonsense: 1}\n",
            "not a config of this version: Key 'nonsense'",
        ),
        ("optimizer: {kind: sgd}\n", "optimizer.kind=sgd is not one of adamw, muon"),
    ],
)
def test_foreign_files_are_named(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "resolved.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        serialize.load(file)
    assert str(refusal.value).startswith(f"{file}: {expected}")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        serialize.load(tmp_path / "resolved.yaml")
