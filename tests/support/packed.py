"""Synthetic packed rows, tiny architectures, and the oracle: the transformers model on each conversation alone."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sft_hydra.engine.batch import Batch, make_batch
from sft_hydra.models.build import as_transformers, build_model, init_weights
from sft_hydra.models.decoder import DecoderModel
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
}
# lengths of conversations in one row: a plain one, one token each, many tiny with long ones between, one that fills it
PACKINGS = {
    "plain": [11, 30, 23],
    "ones": [1, 1, 1, 40, 1],
    "many_tiny": [2, 3, 1, 2, 60, 4, 2, 1, 3, 2, 90, 2],
    "one": [64],
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


def make_model(architecture: dict[str, Any], seed: int = 0) -> DecoderModel:
    """A model whose every parameter is random, norms and biases too."""
    model = build_model(architecture, "cpu", torch.float32)
    init_weights(model, seed, std=0.2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def logits_of(model: DecoderModel, batch: Batch) -> torch.Tensor:
    hidden = model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
    return hidden @ model.head_weight.T


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


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
