"""What the config can say and the code cannot do yet: ONE table. A dry run may plan all of it; a real run refuses it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sft_hydra.config.architecture import read_architecture
from sft_hydra.config.schema import SftConfig
from sft_hydra.errors import ModelError

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "nemotron_h",
)  # values of model_type with a definition of ours


@dataclass(frozen=True, slots=True)
class NotYet:
    asked: Callable[[SftConfig], bool]
    text: str


def _other_family(cfg: SftConfig) -> bool:
    try:
        family = read_architecture(cfg).get("model_type")
    except ModelError:
        return False  # the rules say what is wrong with it
    return family is not None and family not in FAMILIES


NOT_YET: dict[str, NotYet] = {
    "families": NotYet(
        _other_family,
        f"this model's family is not there yet; there are: {', '.join(FAMILIES)} (the model_type of config.json)",
    ),
    "generic": NotYet(
        lambda cfg: cfg.model.generic,
        "model.generic=true: training through the transformers implementation is not there yet",
    ),
}


def not_built_yet(cfg: SftConfig) -> Iterator[str]:
    """The one rule that applies the table."""
    if cfg.dry_run:
        return
    yield from (entry.text for entry in NOT_YET.values() if entry.asked(cfg))
