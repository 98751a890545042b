"""Real chat files with real tokenizers, through the command line: the losses are those of transformers on the same rows."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.config import serialize
from sft_hydra.data_prep import prepare
from sft_hydra.data_prep.blend import train_rows
from sft_hydra.engine.schedule import lr_factor
from sft_hydra.models.build import as_transformers
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.records import PackedRow
from sft_hydra.runners.build_model import new_model
from sft_hydra.schema.config import SftConfig

STEPS = 10


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("chats", "tokenizer", "seq_length"),
    [
        ("gsm8k_train.jsonl", "qwen3", 512),
        ("nanochat_identity.jsonl", "nemotron3_nano", 1024),
        ("tau_bench_airline.jsonl", "qwen3", 16384),
    ],
)
def test_ten_steps_on_real_chats(shared: Path, tmp_path: Path, chats: str, tokenizer: str, seq_length: int) -> None:
    command = [sys.executable, "-m", "sft_hydra", "model=tiny", "optimizer=adamw", "data=jsonl"]
    command += [
        f"data.path={shared / 'assets' / 'chat' / chats}",
        f"tokenizer.path={shared / 'assets' / 'tokenizers' / tokenizer}",
    ]
    command += [
        f"seq_length={seq_length}",
        f"train.train_iters={STEPS}",
        "train.global_batch_size=1",
        "eval.every=null",
    ]
    command += ["data.sample=200", f"output_dir={tmp_path}", "name=real", "export.auto=false", "optimizer.lr=1e-2"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    cfg = serialize.load(tmp_path / "real" / "resolved.yaml")
    lines = [json.loads(line) for line in (tmp_path / "real" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses == pytest.approx(_losses_of_transformers(cfg), abs=1e-4)
    validation = [line["val/loss"] for line in lines if "val/loss" in line]
    assert validation[-1] < validation[0] - 0.5


def _losses_of_transformers(cfg: SftConfig) -> list[float]:
    """The same rows and start, every conversation alone through transformers, AdamW as torch has it."""
    packed = prepare.open_existing(cfg)
    assert packed is not None
    model = as_transformers(new_model(cfg, load_tokenizer(cfg), torch.device("cpu")).model).train()
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    groups = [{"params": decayed, "weight_decay": cfg.optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (cfg.optimizer.betas[0], cfg.optimizer.betas[1])
    optimizer = torch.optim.AdamW(groups, lr=cfg.optimizer.lr, betas=betas, eps=cfg.optimizer.eps)
    rows, losses = train_rows(packed, cfg), []
    for step in range(STEPS):
        row = rows[step]
        loss = sum(_conversation_losses(model, row)) / int(row.loss_mask.sum())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.train.clip_grad or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = cfg.optimizer.lr * lr_factor(step, STEPS, recipe_of(cfg))
        optimizer.step()
    return losses


def _conversation_losses(model: Any, row: PackedRow) -> list[torch.Tensor]:
    """Summed loss of each conversation; the head sees the trained positions only, for the sake of memory."""
    bounds = [*row.seq_start_id.tolist(), len(row.input_ids)]
    losses = []
    for start, end in pairwise(bounds):
        ids = torch.from_numpy(row.input_ids[start:end].astype("int64"))
        at = torch.from_numpy(row.loss_mask[start:end].astype(bool)).nonzero()[:, 0]
        hidden = model.model(input_ids=ids[None]).last_hidden_state[0]
        losses.append(F.cross_entropy(model.lm_head(hidden[at]), ids[at + 1], reduction="sum"))
    return losses
