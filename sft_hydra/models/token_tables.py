"""Embedding and head beside LoRA: trained in full (`peft.modules_to_save`), or only the rows of new tokens
(`peft.trainable_new_tokens`). A head that is the embedding stays it.
"""

import torch
from torch import nn

from sft_hydra.errors import ConfigError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.token_rows import TokenEmbedding, TokenRows
from sft_hydra.parallel.dtensor import copy_shard_, full_tensor
from sft_hydra.schema.peft import LoraConfig


def train_tables(model: DecoderModel, lora: LoraConfig, ids: tuple[int, ...]) -> None:
    """Make the embedding and head of a frozen model trainable as `lora` configures, in place. `ids`: those of the new tokens.
    ConfigError if single rows of this model's embedding cannot be trained."""
    tables = {"embed_tokens": model.embedding_name, "lm_head": model.head_name}
    model.trained_whole = frozenset(tables[name] for name in lora.modules_to_save)
    for name in model.trained_whole:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)
    if lora.trainable_new_tokens:
        _add_rows(model, ids)


def _add_rows(model: DecoderModel, ids: tuple[int, ...]) -> None:
    parent, _, leaf = model.embedding_name.removesuffix(".weight").rpartition(".")
    base = model.get_submodule(f"{parent}.{leaf}".lstrip("."))
    if type(base) is not nn.Embedding:
        raise ConfigError(
            f"peft.trainable_new_tokens=true: the embedding of model_type {model.config.model_type} is a "
            f"{type(base).__name__}, whose rows cannot be trained alone; use peft.modules_to_save=[embed_tokens,lm_head]"
        )
    embedding = TokenEmbedding(base, ids)
    model.get_submodule(parent).register_module(leaf, embedding)
    model.token_ids, model.head_rows = ids, (embedding.token_adapter,)
    if model.head_name != model.embedding_name:
        rows = TokenRows(ids, model.head_weight)
        model.get_submodule(model.head_name.removesuffix(".weight")).register_module("token_adapter", rows)
        model.head_rows = (rows,)


@torch.no_grad()
def init_rows(model: DecoderModel) -> None:
    """Set the rows of new tokens to those of the tables, whose weights are loaded."""
    for module in model.modules():
        for child in module.children():
            if isinstance(child, TokenRows):
                assert isinstance(module.weight, torch.Tensor)
                copy_shard_(child.trainable_tokens_delta, full_tensor(module.weight)[list(child.ids)])
