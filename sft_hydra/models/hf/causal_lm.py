"""Any causal language model of transformers as one of ours: its own layers, our packed attention, our loss.

Owns what a packed row means to such a model. Its attention is ours (models/hf/attention_interface.py); everything else in it
must keep to its own token, which models/hf/check_contamination.py proves at the start. Without packing, a row's conversations are a batch
padded on the right: in a causal model no token sees what comes after it.
"""

import copy
import re
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn

from sft_hydra.errors import ModelError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.hf.attention_interface import WAY_OUT, register
from sft_hydra.models.hf.output_head import Head, find_head, trunk_name
from sft_hydra.models.state_dict_map import hf_name, only_renamed
from sft_hydra.planning.architecture import is_mixture

SPARE = 8  # rows that a table of positions may have beyond them


class GenericModel(DecoderModel):
    """Its sub-modules are those of the transformers model, so that names are; `packed`: rows hold several conversations."""

    def __init__(self, config: Any, theirs: Any, head: Head, *, packed: bool) -> None:
        super().__init__(config, linear_layers(theirs, head.name))
        output, embedding = theirs.get_output_embeddings(), theirs.get_input_embeddings()
        self.packed, self.head, self.logit_cap = packed, head, head.cap
        self.tied = output.weight is embedding.weight
        self.trunk_name = trunk_name(theirs)
        self.prefix = theirs.base_model_prefix + "."
        self.unused = [*(theirs._keys_to_ignore_on_load_unexpected or []), r"rotary_emb\.inv_freq$"]
        for name, child in theirs.named_children():
            if not (self.tied and child is output):
                self.add_module(name, child)
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        self.embedding_name, self.head_name = names[id(embedding.weight)], names[id(output.weight)]

    @property
    def trunk(self) -> Any:
        return self.get_submodule(self.trunk_name)

    @property
    def head_weight(self) -> torch.Tensor:
        return self.get_parameter(self.head_name)

    @property
    def blocks(self) -> list[nn.Module]:
        depth = self.config.num_hidden_layers
        return list(next(m for m in self.modules() if isinstance(m, nn.ModuleList) and len(m) == depth))

    @property
    def learned_positions(self) -> int | None:
        """How many positions have an embedding of their own; None if positions are not learnt."""
        most = getattr(self.config, "max_position_embeddings", None)
        sizes = {module.num_embeddings for module in self.modules() if isinstance(module, nn.Embedding)}
        learnt = any(most is not None and most <= size <= most + SPARE for size in sizes - {self.config.vocab_size})
        return most if learnt else None

    @property
    def tied_head(self) -> str | None:
        return hf_name(self.config, f"{self.head.name}.weight") if self.tied else None

    def ignores(self, name: str) -> bool:
        """Tables that older files hold, and a head that is the embedding."""
        return name == self.tied_head or any(re.search(pattern, name) for pattern in self.unused)

    def compute_buffers(self) -> None:
        """Tables that transformers computes from the config; it fills all that is not marked as filled."""
        for module in self.modules():
            module._is_hf_initialized = False
        for tensor in self.state_dict(keep_vars=True).values():
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        self.trunk.initialize_weights()

    def hidden_states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        # their layers do not round their weights to what comes in, as ours do
        with torch.autocast(self.device.type, self.rounds_to, enabled=self.rounds_to is not None):
            hidden = self._their_states(input_ids, position_ids, cu_seqlens, max_seqlen)
        return hidden if self.head.scale == 1.0 else hidden * self.head.scale

    def _their_states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        if self.packed:
            borders = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
            longest = {"max_length_q": max_seqlen, "max_length_k": max_seqlen}
            return self.trunk(
                input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, **borders, **longest
            ).last_hidden_state[0]
        lengths = cu_seqlens.diff().tolist()
        batch = nn.utils.rnn.pad_sequence(input_ids.split(lengths), batch_first=True)
        rows = self.trunk(input_ids=batch, use_cache=False).last_hidden_state
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])


def generic_model(config: Any, *, packed: bool) -> GenericModel:
    """The model of a transformers config, on the device of the context. ModelError for what cannot be trained exactly."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    family = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"model_type {family!r} is no causal language model of transformers")
    if config.get_text_config() is not config:
        raise ModelError(f"model_type {family!r} reads more than text; only models of text alone are trained")
    theirs_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if is_mixture(config.to_dict()):
        raise ModelError(f"model_type {family!r} is a mixture of experts; only dense models train through transformers")
    if not only_renamed(family):
        raise ModelError(
            f"model_type {family!r} does not compute with the tensors that its files hold, but with others"
        )
    if packed and not theirs_class._can_set_attn_implementation():
        raise ModelError(f"model_type {family!r} computes attention in a way of its own; {WAY_OUT}")
    # in fp32, whatever the files hold: what is computed from the config is not to be rounded
    implementation = register() if packed else None
    theirs = theirs_class._from_config(without_dropout(config), dtype=torch.float32, attn_implementation=implementation)
    _check(theirs, packed=packed)
    return GenericModel(config, theirs, find_head(theirs), packed=packed)


def without_dropout(config: Any) -> Any:
    """A copy in which no value is dropped at random, as in our own families: steps are to be repeatable."""
    config = copy.deepcopy(config)
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def linear_layers(theirs: Any, head: str) -> tuple[str, ...]:
    """The kinds of linear layers there are, by the last part of their names."""
    names = [name for name, module in theirs.named_modules() if type(module) is nn.Linear and name != head]
    return tuple(sorted({name.rpartition(".")[2] for name in names}))


def _check(theirs: Any, *, packed: bool) -> None:
    family, problems = theirs.config.model_type, []
    known = signature(theirs.get_decoder().forward).parameters
    passes_on = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
    if packed and not ("position_ids" in known and passes_on):
        problems.append(f"model_type {family!r} cannot be told where conversations begin; {WAY_OUT}")
    depth = theirs.config.num_hidden_layers
    if not any(isinstance(module, nn.ModuleList) and len(module) == depth for module in theirs.modules()):
        problems.append(f"model_type {family!r} has no list of its {depth} layers")
    if problems:
        raise ModelError(*problems)
