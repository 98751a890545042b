"""From a Hugging Face architecture to one of our models, and from one of ours to the transformers implementation.

Models are built on the meta device first: no weight exists twice, and none before its place is known.
"""

from collections.abc import Callable
from typing import Any

import torch

from sft_hydra.errors import ModelError
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.dense import dense_model
from sft_hydra.models.hf.causal_lm import generic_model
from sft_hydra.models.lora import merged_state, merged_tensors
from sft_hydra.models.nemotron_h import nemotron_h_model
from sft_hydra.models.state_dict_map import to_disk

FAMILIES: dict[str, Callable[[Any], DecoderModel]] = {
    "llama": dense_model,
    "mistral": dense_model,
    "qwen2": dense_model,
    "qwen3": dense_model,
    "qwen3_moe": dense_model,
    "nemotron_h": nemotron_h_model,
}

KEEP_FP32 = ("A_log", "dt_bias", "D", "e_score_correction_bias")  # in every precision, as the reference keeps them


def read_config(architecture: dict[str, Any]) -> Any:
    """The transformers config of the fields of a config.json, with transformers' own defaults for what they leave out."""
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    family = architecture.get("model_type")
    if family not in CONFIG_MAPPING:
        raise ModelError(
            f"model_type {family!r} is not known to transformers {__version__}; a model that brings its own code is not run"
        )
    return AutoConfig.for_model(**{key: _decode(value) for key, value in architecture.items()})


def _decode(value: Any) -> Any:
    """transformers writes infinity into a config.json as an object."""
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        return float(value["__float__"])
    return [_decode(item) for item in value] if isinstance(value, list) else value


def build_model(
    architecture: dict[str, Any],
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    generic: bool = False,
    packed: bool = True,
) -> DecoderModel:
    """The model of a config.json, on `device`, its weights not yet set: fill them by init_weights or load_weights.

    A family that is not ours, or any with `generic`, is the transformers implementation; `packed` says whether its rows
    hold several conversations.
    """
    config = read_config(architecture)
    model: DecoderModel
    with torch.device("meta"):
        if generic or config.model_type not in FAMILIES:
            model = generic_model(config, packed=packed)
        else:
            model = FAMILIES[config.model_type](config)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if name.rpartition(".")[2] in KEEP_FP32 else dtype)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.compute_buffers()
    return model


def as_transformers(model: DecoderModel, gathered_dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model with these weights, in eval mode: for generation. Ask again after the weights have changed.

    Parameters that both sides hold in the same form share their memory, so no second copy of a dense model exists;
    what LoRA changes is merged into a copy. Of several ranks, all must ask; the first gets a model of its own, in
    `gathered_dtype`, the others None.
    """
    if model.mesh.layout.world == 1:
        return transformers_model(model.config, merged_state(model))
    state = {name: tensor.to(gathered_dtype) for name, tensor in merged_tensors(model)}
    return transformers_model(model.config, state).to(model.device) if state else None


def transformers_model(config: Any, state: dict[str, torch.Tensor]) -> Any:
    """The transformers model of `config` with weights named as ours, in eval mode; shares memory where it can."""
    weights = dict(to_disk(config, state))
    dtype = next(iter(weights.values())).dtype
    capped = getattr(config, "attn_logit_softcapping", None)  # which sdpa leaves out
    way = {"attn_implementation": "eager"} if capped else {}
    theirs = transformers_class(config).from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **way)
    theirs.eval()
    use_published_limits(theirs)
    return theirs


def use_published_limits(theirs: Any) -> None:
    """Let a transformers model compute what its config says: its Nemotron-H takes `time_step_min`, which is meant for a
    random start, as a floor for all steps, the published model does not."""
    if theirs.config.model_type != "nemotron_h":
        return
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

    for module in theirs.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.time_step_limit = tuple(theirs.config.time_step_limit)


def transformers_class(config: Any) -> Any:
    """The causal language model class that transformers has for `config`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
