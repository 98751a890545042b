"""The model of a run as one that answers prompts, on every rank: with copies of the whole model, or as it is laid out.

Invariant: all ranks choose the same of the two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.engine.precision import compute_dtype
from sft_hydra.engine.sharded_model import ShardedModel
from sft_hydra.errors import ConfigError
from sft_hydra.evaluation.chat import Chat
from sft_hydra.evaluation.language_model import BatchLimits, LanguageModel, TransformersModel
from sft_hydra.evaluation.shared_model import shared_over_ranks
from sft_hydra.models.build import as_transformers
from sft_hydra.models.decoder import DecoderModel, FamilyModel
from sft_hydra.parallel.collectives import max_over_ranks, sum_over_ranks
from sft_hydra.process.rank import this_rank
from sft_hydra.schema.config import SftConfig

USABLE = 0.5  # share of the free memory that a copy of the model may take; the rest is for its KV cache and activations


@contextmanager
def chat_over_ranks(model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer) -> Iterator[Chat | None]:
    """On the first rank a chat that every rank answers; None on the others, once there is nothing left to answer. A
    collective. ConfigError if the model can answer in neither way."""
    with shared_over_ranks(language_model(model, cfg, tokenizer), model.mesh) as shared:
        yield None if shared is None else Chat(shared, tokenizer, cfg)


def language_model(model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer) -> LanguageModel:
    """This rank's part: see `eval.sharded`. A collective."""
    limits = BatchLimits(cfg.eval.batch_size, cfg.eval.batch_tokens)
    dtype = compute_dtype(cfg.train.precision, model.device)
    if _sharded(model, cfg, dtype):
        if not isinstance(model, FamilyModel):
            raise ConfigError(
                f"eval.sharded: model_type {model.config.model_type} computes with transformers' layers, which answer with a copy "
                "of the whole model on each rank only, and there is no memory for it or eval.sharded=true; set eval.sharded=false "
                "on devices with more memory, or evaluate the export on one process"
            )
        return ShardedModel(model, tokenizer.backend.decode, limits, compiled=cfg.train.compile)
    autocast = dtype if dtype is torch.bfloat16 else None
    hf_model = as_transformers(model, dtype)
    return TransformersModel(
        hf_model, tokenizer.backend.decode, limits, autocast, (model.mesh.rank, model.mesh.layout.world)
    )


def _sharded(model: DecoderModel, cfg: SftConfig, dtype: torch.dtype) -> bool:
    """`eval.sharded`; if it is null, whether a copy of the model in `dtype` does not fit on some rank."""
    if cfg.eval.sharded is not None:
        return cfg.eval.sharded
    if model.mesh.layout.world == 1:
        return False
    first = model.mesh.dp.rank == 0 and model.mesh.seq_rank == 0  # of its pipeline stage
    local = sum(tensor.numel() for name, tensor in model.state_dict().items() if not model.is_copy(name))
    numbers = sum_over_ranks([float(local) * first], model.mesh)[0]
    room = -max_over_ranks(-USABLE * free_memory(model.device), model.mesh)
    return numbers * dtype.itemsize > room


def free_memory(device: torch.device) -> float:
    """Bytes that this rank may still use: of its device, else its part of the machine's memory."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + held)
    table = Path("/proc/meminfo")  # of Linux
    if not table.is_file():
        return float("inf")
    fields = dict(line.split(":", 1) for line in table.read_text(encoding="ascii").splitlines())
    return float(fields["MemAvailable"].split()[0]) * 1024 / this_rank().local_world_size
