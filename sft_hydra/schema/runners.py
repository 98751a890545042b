"""What a command does, and the sections of the runners generate, export and inspect."""

from dataclasses import dataclass, field
from enum import Enum

from sft_hydra.schema.ranges import COUNT, number


class Runner(Enum):
    """What a command does."""

    train = "train"
    data_prep = "data_prep"
    generate = "generate"
    evaluate = "evaluate"
    export = "export"
    inspect = "inspect"


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """Prompts and sampling of runner=generate."""

    prompts: list[str] = field(default_factory=list)
    prompt_file: str | None = None
    """JSONL with a `prompt` or `messages` (and `tools`) per line, or plain text with one prompt per line."""
    interactive: bool = False
    system: str | None = None
    tools: str | None = None
    """Tools available with every prompt, as in `eval.tools`. null: those of `eval.tools`."""
    thinking: bool = False
    """Use the template's thinking mode."""
    max_new_tokens: int = number(256, 1, 10_000_000)
    temperature: float = number(0.0, 0, 1_000)
    """0 = greedy."""
    top_p: float = number(1.0, 0, 1, above=True)


class ExportFormat(Enum):
    """Format of an exported model."""

    hf = "hf"
    megatron = "megatron"


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Format and destination of the exported model."""

    auto: bool = True
    """Export automatically at the end of training."""
    format: ExportFormat = ExportFormat.hf
    """`hf`: a Hugging Face folder. `megatron`: a torch_dist checkpoint that Megatron-Core loads (LoRA needs `merge`)."""
    formats: list[ExportFormat] | None = None
    """Several formats; null: only `format`."""
    path: str | None = None
    """Folder; null: `hf/` or `megatron/` in the run's folder. With two formats, the Megatron one is in `<path>_megatron`."""
    ema: bool = False
    """Export the moving average of the weights (`train.ema_decay`) in place of the last ones."""
    merge: bool = False
    """LoRA: write the merged model instead of the adapter."""
    push_to: str | None = None
    """Repository on the Hugging Face hub, `owner/name`, to which the verified export is uploaded, with the token in HF_TOKEN.
    null: no upload."""
    public: bool = False
    """Create the repository of `push_to` as public; false: private."""


@dataclass(kw_only=True, slots=True)
class InspectConfig:
    """What runner=inspect shows."""

    split: str = "train"
    count: int = number(3, 1, COUNT)
    """Packed sequences shown in the terminal."""
    html: bool = False
    """Also write one self-contained page, `inspect.html` in the run's folder."""
    conversations: int = number(10_000, 1, COUNT)
    """Approximate number of conversations on the page: all packed sequences, or a sample spread evenly over the split."""
