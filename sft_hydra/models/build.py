"""Builds a model from a Hugging Face config, and the transformers model from one of ours.

Models are built on the meta device first, so weights are allocated once, after the layout is known.
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

KEEP_FP32 = ("A_log", "dt_bias", "D", "e_score_correction_bias")  # fp32 in every precision, as in the reference code


def read_config(architecture: dict[str, Any]) -> Any:
    """The transformers config for the fields of a config.json, with transformers' defaults for missing fields.

    ModelError if transformers does not have the `model_type`.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    family = architecture.get("model_type")
    if family not in CONFIG_MAPPING:
        raise ModelError(
            f"model_type {family!r} of the model's config.json is not supported by transformers {__version__}, and models "
            "with their own code are not run; choose another model or install a newer transformers"
        )
    return AutoConfig.for_model(**{key: _decode(value) for key, value in architecture.items()})


def _decode(value: Any) -> Any:
    """A JSON value with transformers' encoding of infinity, {"__float__": ...}, decoded."""
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
    """The model of the config.json fields `architecture`, on `device` in `dtype`, with uninitialized weights: call
    init_weights or load_weights next.

    Families without an implementation here, and all with `generic`, use the transformers implementation; `packed`: its
    sequences hold several conversations. ModelError for an unsupported model.
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
    """The transformers model with the current weights, in eval mode, for generation. Call again after weights change.

    Parameters of the same form on both sides share memory, so a dense model is not copied; LoRA-adapted weights are merged
    into a copy. With several ranks it is a collective: each gets a separate model in `gathered_dtype`, on its device.
    """
    if model.mesh.layout.world == 1:
        return transformers_model(model.config, merged_state(model))
    state = {name: tensor.to(gathered_dtype) for name, tensor in merged_tensors(model, everywhere=True)}
    return transformers_model(model.config, state).to(model.device)


def transformers_model(config: Any, state: dict[str, torch.Tensor]) -> Any:
    """The transformers model of `config` in eval mode from `state` with our parameter names; shares memory if possible."""
    weights = dict(to_disk(config, state))
    dtype = next(iter(weights.values())).dtype
    capped = getattr(config, "attn_logit_softcapping", None)  # sdpa does not support it
    attention = {"attn_implementation": "eager"} if capped else {}
    hf_model = transformers_class(config).from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, **attention
    )
    hf_model.eval()
    use_published_limits(hf_model)
    return hf_model


def use_published_limits(hf_model: Any) -> None:
    """Set the time-step limits of a transformers Nemotron-H to its config's `time_step_limit`: transformers clamps steps to
    `time_step_min`, which is for random initialization; the published model does not."""
    if hf_model.config.model_type != "nemotron_h":
        return
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

    for module in hf_model.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.time_step_limit = tuple(hf_model.config.time_step_limit)


def transformers_class(config: Any) -> Any:
    """The causal language model class of transformers for `config`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
