"""Any causal language model of transformers as a `DecoderModel`: transformers' layers, our packed attention, our loss.

With packing, attention is ours (models/hf/attention_interface.py), and all other layers must not mix tokens, which
models/hf/check_contamination.py checks before training. Without packing, the conversations of a micro-batch are a
right-padded batch: in a causal model no token attends to later ones.
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

SPARE = 8  # extra rows that a position embedding may have (OPT has 2)


class GenericModel(DecoderModel):
    """A transformers model as `DecoderModel`. Its sub-modules, and so parameter names, are those of the transformers model.

    `packed`: sequences hold several conversations.
    """

    def __init__(self, config: Any, hf_model: Any, head: Head, *, packed: bool) -> None:
        super().__init__(config, linear_layers(hf_model, head.name))
        output, embedding = hf_model.get_output_embeddings(), hf_model.get_input_embeddings()
        self.packed, self.head, self.logit_cap = packed, head, head.cap
        self.tied = output.weight is embedding.weight
        self.trunk_name = trunk_name(hf_model)
        self.prefix = hf_model.base_model_prefix + "."
        self.unused = [*(hf_model._keys_to_ignore_on_load_unexpected or []), r"rotary_emb\.inv_freq$"]
        for name, child in hf_model.named_children():
            if not (self.tied and child is output):
                self.add_module(name, child)
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        self.embedding_name, self.head_name = names[id(embedding.weight)], names[id(output.weight)]

    @property
    def trunk(self) -> Any:
        """The base model without lm_head: ids to hidden states."""
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
        """Number of learned position embeddings; None if the model has none."""
        most = getattr(self.config, "max_position_embeddings", None)
        sizes = {module.num_embeddings for module in self.modules() if isinstance(module, nn.Embedding)}
        is_learned = any(most is not None and most <= size <= most + SPARE for size in sizes - {self.config.vocab_size})
        return most if is_learned else None

    @property
    def tied_head(self) -> str | None:
        return hf_name(self.config, f"{self.head.name}.weight") if self.tied else None

    def ignores(self, name: str) -> bool:
        """Tables that older files hold, and a head that is the embedding."""
        return name == self.tied_head or any(re.search(pattern, name) for pattern in self.unused)

    def compute_buffers(self) -> None:
        """Let transformers compute its buffers; it initializes every tensor not marked as initialized."""
        for module in self.modules():
            module._is_hf_initialized = False
        for tensor in self.state_dict(keep_vars=True).values():
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        self.trunk.initialize_weights()

    def hidden_states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        # transformers' layers do not cast weights to the dtype of their input, as ours do
        with torch.autocast(self.device.type, self.rounds_to, enabled=self.rounds_to is not None):
            hidden = self._hf_hidden_states(input_ids, position_ids, cu_seqlens, max_seqlen)
        return hidden if self.head.scale == 1.0 else hidden * self.head.scale

    def _hf_hidden_states(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        lengths = None if self.packed else cu_seqlens.diff().tolist()
        inputs = self._inputs(input_ids, lengths)
        if lengths is None:
            boundaries = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
            longest = {"max_length_q": max_seqlen, "max_length_k": max_seqlen}
            return self.trunk(
                **inputs, position_ids=position_ids[None], use_cache=False, **boundaries, **longest
            ).last_hidden_state[0]
        rows = self.trunk(**inputs, use_cache=False).last_hidden_state
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])

    def _inputs(self, input_ids: torch.Tensor, lengths: list[int] | None) -> dict[str, torch.Tensor]:
        """Ids (1, T), or with noise embeddings (1, T, hidden); with `lengths`, a right-padded batch of documents."""
        inputs = input_ids
        if self.noise is not None:
            inputs = self.noise.added(self.trunk.get_input_embeddings()(input_ids))
        batch = inputs[None] if lengths is None else nn.utils.rnn.pad_sequence(inputs.split(lengths), batch_first=True)
        return {"input_ids" if self.noise is None else "inputs_embeds": batch}


def generic_model(config: Any, *, packed: bool) -> GenericModel:
    """The model for a transformers config, on the current default device. ModelError if it cannot be trained exactly."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    family = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"model_type {family!r} has no causal language model in transformers; choose a decoder model")
    if config.get_text_config() is not config:
        raise ModelError(f"model_type {family!r} is multimodal; only text-only models are supported")
    hf_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if is_mixture(config.to_dict()):
        raise ModelError(
            f"model_type {family!r} is a mixture of experts; with transformers' layers only dense models are supported (own "
            "implementations: qwen3_moe, nemotron_h)"
        )
    if not only_renamed(family):
        raise ModelError(
            f"model_type {family!r} transforms its weights on load, which is not supported; use another model"
        )
    if packed and not hf_class._can_set_attn_implementation():
        raise ModelError(f"model_type {family!r} does not support other attention implementations; {WAY_OUT}")
    # in fp32 whatever the dtype of the files: buffers computed from the config must not be rounded
    implementation = register() if packed else None
    hf_model = hf_class._from_config(without_dropout(config), dtype=torch.float32, attn_implementation=implementation)
    _check(hf_model, packed=packed)
    return GenericModel(config, hf_model, find_head(hf_model), packed=packed)


def without_dropout(config: Any) -> Any:
    """A copy of the config with all dropout set to 0, as in our families, so that steps are reproducible."""
    config = copy.deepcopy(config)
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def linear_layers(hf_model: Any, head: str) -> tuple[str, ...]:
    """Last name parts of all linear layers except `head`, sorted."""
    names = [name for name, module in hf_model.named_modules() if type(module) is nn.Linear and name != head]
    return tuple(sorted({name.rpartition(".")[2] for name in names}))


def _check(hf_model: Any, *, packed: bool) -> None:
    family, problems = hf_model.config.model_type, []
    parameters = signature(hf_model.get_decoder().forward).parameters
    passes_on = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    if packed and not ("position_ids" in parameters and passes_on):
        problems.append(f"model_type {family!r}: its attention does not accept document boundaries; {WAY_OUT}")
    depth = hf_model.config.num_hidden_layers
    if not any(isinstance(module, nn.ModuleList) and len(module) == depth for module in hf_model.modules()):
        problems.append(f"model_type {family!r} is not supported: it has no ModuleList of its {depth} layers")
    if problems:
        raise ModelError(*problems)
