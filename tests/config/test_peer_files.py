"""Configurations of NeMo RL, NeMo Automodel and Megatron-Bridge as `experiment=`: each key is answered, and what they say together composes."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sft_hydra.schema.config import SftConfig

NEMO_RL = """
defaults: base.yaml
sft: {max_num_steps: 40, max_num_epochs: 2, val_period: 5, seed: 3, val_at_start: true}
checkpointing: {enabled: true, checkpoint_dir: results, metric_name: "val:val_loss", keep_top_k: 2, save_period: 8}
policy:
  model_name: my_model
  tokenizer: {name: "${policy.model_name}", chat_template: "{% for message in messages %}{{ message['content'] }}{% endfor %}"}
  train_global_batch_size: 16
  train_micro_batch_size: 2
  max_total_sequence_length: 512
  precision: bfloat16
  dtensor_cfg: {enabled: false, lora_cfg: {enabled: true, dim: 4}}
  megatron_cfg:
    enabled: true
    tensor_model_parallel_size: 1
    activation_checkpointing: true
    peft: {enabled: true, dim: 8, alpha: 16, lora_A_init_method: uniform}
    optimizer: {lr: 1.0e-5, adam_beta1: 0.9, adam_beta2: 0.95, clip_grad: "${policy.max_grad_norm}"}
    scheduler: {lr_decay_style: cosine, lr_warmup_iters: 3}
  max_grad_norm: 1.0
  optimizer: {kwargs: {lr: 7.0}}
  make_sequence_length_divisible_by: "${mul:2, 3}"
  surprising: 1
data:
  train: {data_path: chats.jsonl, input_key: question, split_validation_size: 0.25}
  default: {processor: some_class, output_key: answer}
logger: {wandb_enabled: false, tensorboard_enabled: true, wandb: {project: team, name: "run-${policy.model_name}"}}
cluster: {gpus_per_node: 1, num_nodes: 1}
"""
BRIDGE = """
recipe: {_target_: some.recipes.qwen3_600m_sft_config, packed_sequence: true}
dataset: {seq_length: 256, nano3_packed_sft_dir: packed}
train: {train_iters: 9, global_batch_size: 4, exit_signal: 15}
optimizer: {lr: 2.0e-5, min_lr: 1.0e-6, adam_beta1: 0.9, adam_beta2: 0.98}
scheduler: {lr_warmup_iters: 2, lr_decay_style: cosine}
checkpoint: {pretrained_checkpoint: "${oc.env:HOME}", save: saved, save_interval: 3, load: elsewhere}
peft: {dim: 4, alpha: 8}
model: {tensor_model_parallel_size: 1, recompute_granularity: full, hidden_size: 64}
logger: {wandb_project: null, log_interval: 2}
rng: {seed: 5}
ddp: {overlap_grad_reduce: true}
"""
AUTOMODEL = """
recipe: SomeRecipe
step_scheduler: {global_batch_size: 4, local_batch_size: 2, max_steps: 6, val_every_steps: 3}
dist_env: {backend: nccl}
rng: {seed: 5}
model: {_target_: some.class, pretrained_model_name_or_path: my_model, torch_dtype: bfloat16, backend: {attn: te}}
distributed: {strategy: fsdp2, dp_size: none, tp_size: 1}
dataset: {_target_: some.class, path_or_dataset_id: chats.jsonl}
packed_sequence: {packed_sequence_size: 512}
optimizer: {_target_: torch.optim.AdamW, lr: 1.0e-5, eps: 1.0e-8}
lr_scheduler: {lr_decay_style: cosine, min_lr: 1.0e-6}
"""


def answered(text: str, folder: Path, problems: Callable[..., list[str]]) -> list[str]:
    file = folder.parent / "theirs.yaml"
    file.write_text(text)
    return problems(f"experiment={file}")


def leaves(node: object, key: str = "") -> list[str]:
    if isinstance(node, dict):
        return [leaf for name, value in node.items() for leaf in leaves(value, f"{key}.{name}".lstrip("."))]
    return [key]


def command_of(found: list[str]) -> list[str]:
    return shlex.split(found[-1].removeprefix("as one command: python -m sft_hydra "))


def test_a_file_of_nemo_rl(
    empty_folder: Path, problems: Callable[..., list[str]], resolved: Callable[..., SftConfig]
) -> None:
    found = answered(NEMO_RL, empty_folder, problems)
    assert "a configuration of NeMo RL" in found[0]
    assert "policy.precision: bfloat16 -> train.precision=bf16" in found
    assert "policy.megatron_cfg.optimizer.clip_grad: 1.0 -> train.clip_grad=1.0" in found
    assert "policy.tokenizer.chat_template: ... -> tokenizer.chat_template=..." in found
    unused = ("policy.optimizer", "policy.dtensor_cfg.lora_cfg")  # the other backend
    for key in leaves(yaml.safe_load(NEMO_RL)):
        assert any(key in line for line in found) != key.startswith(unused), key
    (empty_folder / "my_model").mkdir()
    (empty_folder / "my_model/config.json").write_text('{"model_type": "qwen3"}')
    (empty_folder / "chats.jsonl").touch()
    cfg = resolved(*command_of(found), "dry_run=true")
    assert (cfg.train.train_iters, cfg.seq_length, cfg.optimizer.betas, cfg.seed) == (40, 512, [0.9, 0.95], 3)
    assert cfg.peft
    assert (cfg.peft.dim, cfg.peft.a_init, cfg.data.split.train, cfg.data.default.input_key) == (
        8,
        "uniform",
        0.75,
        "question",
    )
    assert (cfg.logger.wandb, cfg.optimizer.lr, cfg.name) == (None, 1e-5, "run-my_model")  # fmt: skip


def test_a_file_of_megatron_bridge(
    empty_folder: Path,
    problems: Callable[..., list[str]],
    resolved: Callable[..., SftConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/secret/home")
    found = answered(BRIDGE, empty_folder, problems)
    assert "a configuration of Megatron-Bridge" in found[0]
    assert "/secret/home" not in "\n".join(found)
    assert "checkpoint.pretrained_checkpoint: ... -> model.path=..." in found
    for key in leaves(yaml.safe_load(BRIDGE)):
        assert any(key in line for line in found), key
    (empty_folder / "packed").mkdir()
    cfg = resolved(*command_of(found), "dry_run=true")
    assert (cfg.model.name, cfg.train.train_iters, cfg.scheduler.warmup_iters, cfg.seed) == ("qwen3_0_6b", 9, 2, 5)
    assert cfg.peft
    assert (cfg.peft.alpha, cfg.train.recompute.value, cfg.checkpoint.save) == (8, "full", "saved")


def test_a_file_in_a_folder_of_options(empty_folder: Path, problems: Callable[..., list[str]]) -> None:
    (empty_folder / "mine/experiment").mkdir(parents=True)
    (empty_folder / "mine/experiment/theirs.yaml").write_text(f"# @package _global_{BRIDGE}")
    found = problems("--config-dir", "mine", "experiment=theirs")
    assert "mine/experiment/theirs.yaml is a configuration of Megatron-Bridge" in found[0]


def test_a_file_of_automodel(
    empty_folder: Path, problems: Callable[..., list[str]], resolved: Callable[..., SftConfig]
) -> None:
    found = answered(AUTOMODEL, empty_folder, problems)
    assert "a configuration of NeMo Automodel" in found[0]
    for key in leaves(yaml.safe_load(AUTOMODEL)):
        assert any(key in line and "unknown" not in line for line in found), key
    (empty_folder / "my_model").mkdir()
    (empty_folder / "my_model/config.json").write_text('{"model_type": "qwen3"}')
    (empty_folder / "chats.jsonl").touch()
    cfg = resolved(*command_of(found), "dry_run=true")
    assert (cfg.train.train_iters, cfg.seq_length, cfg.scheduler.min_lr, cfg.seed) == (6, 512, 1e-6, 5)
