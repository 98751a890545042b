"""Synthetic packed rows, tiny architectures, and the oracle: the transformers model on each conversation alone."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.models.build import as_transformers, build_model
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.init_weights import init_weights
from sft_hydra.models.state_dict_map import to_disk
from sft_hydra.records import IGNORE_INDEX, PackedRow

VOCAB = 97
DENSE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000.0,
}
HYBRID: dict[str, Any] = {
    "model_type": "nemotron_h",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "hybrid_override_pattern": "ME*EM",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "mamba_num_heads": 6,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "chunk_size": 16,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 24,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "max_position_embeddings": 512,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": DENSE | {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "qwen3_biased": DENSE | {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "qwen2": DENSE | {"model_type": "qwen2"},
    "llama": DENSE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama3_rope": DENSE
    | {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "yarn": DENSE
    | {
        "model_type": "qwen3",
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "linear_rope": DENSE
    | {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}},
    "mistral_window": DENSE | {"model_type": "mistral", "sliding_window": 7},
    "qwen2_window": DENSE
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3_moe": DENSE
    | {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "nano": HYBRID,
    "super": HYBRID
    | {"hybrid_override_pattern": "M-E*", "moe_latent_size": 16, "num_experts_per_tok": 3, "mlp_bias": True},
}
# lengths of conversations in one row: a plain one, one token each, many tiny with long ones between, one that fills it
PACKINGS = {
    "plain": [11, 30, 23],
    "ones": [1, 1, 1, 40, 1],
    "many_tiny": [2, 3, 1, 2, 60, 4, 2, 1, 3, 2, 90, 2],
    "one": [64],
    "chunk_edges": [16, 15, 1, 17, 31, 32, 16],  # of a scan in chunks of 16
}


def make_row(lengths: list[int], seed: int = 0, vocab: int = VOCAB, num_sources: int = 2) -> PackedRow:
    """A row of random tokens with a random loss mask, as shards hold it (rolled left, 0 at the end of conversations)."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    mask = (rng.random(total) < 0.6).astype(np.uint8)
    mask[starts + np.array(lengths) - 1] = 0
    return PackedRow(
        input_ids=rng.integers(0, vocab, total).astype(np.int32),
        loss_mask=mask,
        seq_start_id=starts.astype(np.int32),
        source_id=rng.integers(0, num_sources, len(lengths)).astype(np.int16),
    )


class RowList(list[PackedRow]):
    """Rows as training over several ranks wants them: with what they cost."""

    def costs(self, numbers: range) -> list[float]:
        lengths = (np.diff(self[n].seq_start_id, append=len(self[n].input_ids)) for n in numbers)
        return [float(np.square(each).sum()) for each in lengths]


def make_model(architecture: dict[str, Any], seed: int = 0) -> DecoderModel:
    """A model whose every parameter and buffer is random, norms and biases too."""
    model = build_model(architecture, "cpu", torch.float32)
    init_weights(model, seed, std=0.2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model


def logits_of(model: DecoderModel, batch: Batch) -> torch.Tensor:
    hidden = model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
    return model.logits(hidden, model.used_full_head())


def alone(oracle: Any, rows: list[PackedRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (T, vocab) and summed loss of a transformers model that sees one conversation at a time."""
    batch = make_batch(rows, "cpu")
    borders = batch.cu_seqlens.tolist()
    pieces = [oracle(input_ids=batch.input_ids[None, a:b]).logits[0] for a, b in pairwise(borders)]
    logits = torch.cat(pieces)
    return logits, F.cross_entropy(logits, batch.targets, ignore_index=IGNORE_INDEX, reduction="sum")


def oracle_of(model: DecoderModel) -> Any:
    """The transformers model with the same weights, ready for gradients of its own."""
    return as_transformers(model).requires_grad_(True)


def gradients(model: DecoderModel) -> dict[str, torch.Tensor]:
    """Gradients of a model of ours, by their names on disk."""
    return dict(to_disk(model.config, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))


def oracle_gradients(oracle: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Gradients of a transformers model by their names on disk, which save_pretrained knows."""
    oracle.save_pretrained(folder, state_dict={name: p.grad for name, p in oracle.named_parameters()})
    return load_file(folder / "model.safetensors")


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
