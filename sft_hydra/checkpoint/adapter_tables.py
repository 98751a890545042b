"""Embedding and head in adapters of PEFT's format: whole ones (`modules_to_save`), or the rows of some tokens
(`trainable_token_indices`).

Owns what the two formats differ in: the name of Nemotron-H's embedding, and how a head that is tied to the embedding is stored.
"""

from typing import Any

import torch

from sft_hydra.config.adapter import PREFIX, Adapter
from sft_hydra.errors import ModelError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.token_rows import replaced_rows
from sft_hydra.parallel.dtensor import copy_shard_
from sft_hydra.planning.lora_targets import TOKEN_ROWS

Tensors = dict[str, torch.Tensor]


def tables_to_peft(config: Any, adapters: Tensors) -> Tensors:
    """Embedding, head or their rows among `adapters` (named as ours), by the names of PEFT's file."""
    tables = {name: tensor.detach().cpu().contiguous() for name, tensor in adapters.items() if _is_table(name)}
    whole = [tensor for name, tensor in tables.items() if not name.endswith(TOKEN_ROWS)]
    if config.tie_word_embeddings and whole:
        tables["lm_head.weight"] = whole[0].clone()  # peft looks for both
    return {f"{PREFIX}{_in_transformers(config, name)}": tensor for name, tensor in tables.items()}


def fields_of_tables(config: Any, adapters: Tensors, token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Their fields in adapter_config.json."""
    modules = {
        name: _in_transformers(config, name).removesuffix(".weight").removesuffix(f".{TOKEN_ROWS}") for name in adapters
    }
    whole = [modules[name].rpartition(".")[2] for name in adapters if _is_table(name) and not name.endswith(TOKEN_ROWS)]
    rows = [modules[name].rpartition(".")[2] for name in adapters if name.endswith(TOKEN_ROWS)]
    return {
        "modules_to_save": whole or None,
        "trainable_token_indices": {name: list(token_ids) for name in rows} or None,
        "ensure_weight_tying": bool(config.tie_word_embeddings and whole),
    }


def merge_tables(config: Any, adapter: Adapter, factors: Tensors, weights: Tensors) -> None:
    """Put embedding, head or their rows from the file into `weights`, named as ours, in place."""
    for name, in_file in _used(adapter, tied=config.tie_word_embeddings).items():
        if name.endswith(TOKEN_ROWS):
            table = name.removesuffix(TOKEN_ROWS) + "weight"
            weights[table] = replaced_rows(
                weights[table], adapter.token_ids, factors[in_file].to(weights[table].device)
            )
        else:
            weights[name] = factors[in_file].to(weights[name])


def load_tables(model: DecoderModel, adapter: Adapter, factors: Tensors) -> list[str]:
    """Fill embedding, head or their rows of a model that trains them. Returns the problems."""
    problems = []
    own = dict(model.named_parameters())
    for name, in_file in _used(adapter, tied=model.tied_head is not None).items():
        if name not in own:
            continue  # on another pipeline stage
        values = factors[in_file].float()
        if name.endswith(TOKEN_ROWS) and sorted(adapter.token_ids) != sorted(model.token_ids):
            problems.append(
                f"{adapter.folder}: trains the rows of tokens {list(adapter.token_ids)[:20]}, tokenizer.add_tokens and "
                f"add_special_tokens name {list(model.token_ids)[:20]}"
            )
        elif own[name].shape != values.shape:
            here, there = tuple(own[name].shape), tuple(values.shape)
            problems.append(f"{adapter.folder}: {in_file} is {there}, this model makes {name} {here}")
        elif name.endswith(TOKEN_ROWS):
            copy_shard_(own[name], values[[adapter.token_ids.index(id_) for id_ in model.token_ids]])
        else:
            copy_shard_(own[name], values)
    return problems


def _used(adapter: Adapter, *, tied: bool) -> dict[str, str]:
    """Our names -> names in the file; of a tied head the embedding's alone. ModelError if the adapter unties it."""
    whole = [name for name in adapter.tables if not name.endswith(TOKEN_ROWS)]
    if tied and whole and not adapter.fields.get("ensure_weight_tying"):
        raise ModelError(
            f"{adapter.folder}: modules_to_save without ensure_weight_tying trains {' and '.join(whole)} apart from what the "
            "base ties it to; here the head of such a model stays the embedding. Train it with ensure_weight_tying=true"
        )
    return {name: in_file for name, in_file in adapter.tables.items() if not (tied and name.startswith("lm_head."))}


def _is_table(name: str) -> bool:
    return name.endswith(TOKEN_ROWS) or ".lora_" not in name


def _in_transformers(config: Any, name: str) -> str:
    """The name of one of our parameters in transformers' model."""
    if config.model_type == "nemotron_h":
        return name.replace("model.embed_tokens.", "model.embeddings.")
    return name
