"""Sections of the config about data and tokenizer."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sft_hydra.schema.ranges import MANY, number


class Prepare(Enum):
    """Whether a command may prepare missing data."""

    auto = "auto"
    never = "never"


class Reasoning(Enum):
    """How conversations with reasoning become sequences."""

    split_turns = "split_turns"
    keep = "keep"
    drop = "drop"


class MultiTurn(Enum):
    """How conversations without reasoning become sequences."""

    auto = "auto"
    one = "one"
    split = "split"


class Overlong(Enum):
    """What happens to sequences longer than `seq_length`."""

    split_turns = "split_turns"
    drop = "drop"
    truncate = "truncate"
    error = "error"


class Packing(Enum):
    """How sequences are combined into packed sequences."""

    best_fit = "best_fit"
    first_fit_shuffle = "first_fit_shuffle"
    first_fit_decreasing = "first_fit_decreasing"
    concatenative = "concatenative"
    none = "none"


class DataFormat(Enum):
    """File format of packed sets."""

    parquet = "parquet"
    npy = "npy"


class RowOrder(Enum):
    """Order of the packed sequences of an epoch."""

    shuffle = "shuffle"
    by_source = "by_source"


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """The tokenizer and its chat template."""

    path: str | None = None
    """Hub id or folder; `demo` = the bundled one. null: `model.path`, or the bundled one if that is null too."""
    chat_template: str | None = "default"
    """`default` (the tokenizer's own), null (message contents concatenated), a path, or the template itself."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables passed to the template."""
    add_tokens: list[str] = field(default_factory=list)
    """Tokens that the tokenizer gets beside its own, for words that a person may write. Embedding and head grow where they have
    no row for one; its rows start as the mean of all others."""
    add_special_tokens: list[str] = field(default_factory=list)
    """The same for control tokens, which decoding may leave out."""

    @property
    def num_new_tokens(self) -> int:
        return len(self.add_tokens) + len(self.add_special_tokens)


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One source of a data blend: where its rows are, their format and weight."""

    """In `data.sources`, null is what `data.default` has, and `''` is none whatever it has."""

    path: str | None = None
    """File, folder or glob (.jsonl, .json, .parquet, also .gz and .zst), a folder of `save_to_disk`, a hub id, `demo:<part>`,
    `builtin:simple_spelling` or `builtin:spelling_bee`."""
    weight: float | None = number(None, 0, 1e12)
    """Share of the training tokens, relative to the other sources' weights."""
    epochs: float | None = number(None, 0, 1e6)
    """Passes over this source in one epoch of the blend; may be a fraction."""
    split: str | None = None
    """Split of a hub data set; null: `train`, or all splits if it has none of that name."""
    subset: str | None = None
    """Part of a hub data set: a configuration, a split, a folder or the stem of a file (`chat_if` for `data/chat_if.jsonl`)."""
    format: str | None = None
    """null (or `auto`): what the keys of a row show; else `openai`, `prompt_completion`, `sharegpt`, `alpaca`, or the schema of a
    known set: `mmlu`, `gsm8k`, `squad`, `oasst`; `text`: raw text (continued pretraining), every token trained."""
    messages_key: str | None = None
    """null: `messages`."""
    tools_key: str | None = None
    """null: `tools`."""
    system_key: str | None = None
    input_key: str | None = None
    output_key: str | None = None
    system_prompt: str | None = None
    """Put in front of conversations that have no system message."""
    system_prompt_file: str | None = None
    """The same, read from a file."""
    prompt: str | None = None
    """`prompt_completion`: the question, with {} where the input goes."""
    prompt_file: str | None = None
    """The same, read from a file."""
    text_key: str | None = None
    """`text`: the column that holds the document; null: `text`."""
    end_token: str | None = None
    """`text`: the control token behind each document; null: the tokenizer's `eos_token`."""


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Ratios of the train, valid and test splits; they sum to 1."""

    train: float = number(0.98, 0, 1)
    valid: float = number(0.01, 0, 1)
    test: float = number(0.01, 0, 1)


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    """A language model that judges every conversation that the other filters keep."""

    url: str = "http://localhost:8000/v1"
    """Base of an OpenAI-compatible endpoint."""
    model: str | None = None
    """Name of the model at the endpoint; null: the judge is off."""
    question: str = "Is the assistant's part of this conversation correct, helpful and complete?"
    """The question; the conversation and `Answer yes or no.` are added."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, if one is needed."""
    timeout: float = number(60.0, 0, 1_000_000, above=True)
    """Seconds to wait for an answer."""
    retries: int = number(4, 0, 1_000)
    parallel: int = number(16, 1, 10_000)
    """Concurrent requests of each process."""
    cache: str | None = None
    """File in which verdicts are cached; null: `<output_dir>/data/judge.jsonl`."""


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Which rows are rejected."""

    structure: bool = True
    """Reject rows with wrong roles or types, or without an assistant message."""
    tools: bool = True
    """Reject rows with a call of a tool that the row does not define (in `tools` or in the text before the first answer), or a
    tool result without a call."""
    tool_schema: bool = False
    """With `tools`: also reject calls whose arguments do not match the JSON schema of the tool."""
    tools_missing: bool = True
    """Reject rows with `<tool_call>` in a message but neither `tools` nor a `# Tools` header."""
    dedup: bool = False
    """Drop exact duplicates within a source."""
    repetition: bool = False
    """Drop rows with answers that repeat the same words excessively."""
    patterns: list[str] = field(default_factory=list)
    """Drop rows in which one of these regular expressions is found in an assistant message."""
    equals: dict[str, str] = field(default_factory=dict)
    """Keep rows whose field has (or lists) this value, e.g. `{used_in: nano_v3}`."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The training data and how it is prepared."""

    name: str = "custom"
    """Short name; part of the run's name."""
    path: str | None = None
    """`data=jsonl`: file, folder or glob of the only source."""
    valid_path: str | None = None
    """Separate validation file; null: part of `path`, by `split`."""
    blend: str | None = None
    """`data=blend`: JSON file with `{"datasets": [{"name", "path", "weight", ...}]}`."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Named sources."""
    default: SourceConfig = field(default_factory=SourceConfig)
    """What every source has that does not set it itself."""
    packed_dir: str | None = None
    """Folder of the packed set, written or read; null: `<output_dir>/data/<content key>`."""
    trust_foreign: bool = False
    """Accept packed shards of other tools in `packed_dir`, which have no metadata to check."""
    prepare: Prepare = Prepare.auto
    """`auto`: train prepares what is missing (on this machine). `never`: missing data is an error."""
    force: bool = False
    """Prepare the data even if the packed set exists."""
    split: SplitConfig = field(default_factory=SplitConfig)
    sample: int | None = number(None, 1, MANY)
    """First rows read of each source, before filters."""
    num_workers: int | None = number(None, 1, 10_000)
    """Processes at most; null: one per core. Small data sets use fewer. Does not change the result."""
    num_shards: int | None = number(None, 1, 1_000_000)
    """Shards per source; null: by the size of the input."""
    num_parts: int | None = number(None, 1, 100_000)
    """Machines that prepare together: on Slurm, the size of an array of CPU jobs. null: by the size of the input."""
    part: int | None = number(None, 0, 100_000)
    """Of `num_parts`, the share that this run tokenizes, from 0; a run without it then finishes what all parts have done."""
    packing: Packing = Packing.best_fit
    format: DataFormat = DataFormat.parquet
    reasoning: Reasoning = Reasoning.split_turns
    """Rows with reasoning: one sequence per user turn as at inference, or keep all reasoning, or drop it."""
    multi_turn: MultiTurn = MultiTurn.auto
    """Rows without reasoning: one sequence where the template renders history as it was served, else one per user turn."""
    roles_to_train: list[str] = field(default_factory=lambda: ["assistant"])
    """Whose messages are supervised: `assistant`, `user`, `system`, `developer`, `tool`. Messages of other roles than
    `assistant` are supervised from their first token to the closing token."""
    train_on_last_turn: bool = False
    """Only the last answer of each row is supervised; earlier ones are context."""
    mask_reasoning: bool = False
    """Reasoning is not supervised: supervision of a turn starts with the closing tag of its reasoning."""
    merge_same_role: bool = False
    """Neighbouring messages of one role are joined with an empty line between them (not tool results)."""
    overlong: Overlong = Overlong.split_turns
    """What happens to sequences longer than `seq_length`."""
    max_doc_tokens: int | None = number(None, 1, MANY)
    """Truncate longer sequences before anything else; null: off."""
    allow_special_in_content: bool = False
    """False: control tokens written in user, system and tool contents are encoded as ordinary text."""
    max_bad_rows: int | None = number(None, 0, MANY)
    """Stop when more rows than this are rejected."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    order: RowOrder = RowOrder.shuffle
    """Rows of an epoch: all shuffled together, or source after source (a curriculum), shuffled within each."""
