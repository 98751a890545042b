"""Freezes a part of the model in full fine-tuning (`train.freeze`, `train.trainable`)."""

import re
from collections.abc import Sequence

from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.lora import Coverage
from sft_hydra.planning.trained_parameters import choose_trained


def freeze_parameters(model: DecoderModel, freeze: Sequence[str], trainable: Sequence[str] | None) -> list[Coverage]:
    """Freeze all parameters but those that the patterns choose, in place. Returns the coverage table.

    Frozen weights keep their dtype. A head that is the embedding is frozen with it. ConfigError for a pattern without a match.
    """
    parameters = dict(model.named_parameters())
    trained = choose_trained(list(parameters), freeze, trainable)
    kinds: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
        kinds.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    table = []
    for kind, names in kinds.items():
        own = [name for name in names if name in trained]
        table.append(Coverage(kind, len(own), len(names), sum(parameters[name].numel() for name in own)))
    return table
