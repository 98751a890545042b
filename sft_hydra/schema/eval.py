"""The `eval` section: validation, benchmarks and sample answers."""

from dataclasses import dataclass, field

from sft_hydra.schema.ranges import COUNT, MANY, STEPS, number

CHATCORE_TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling_bee")
EPOCH = "epoch"  # value of eval.every


@dataclass(kw_only=True, slots=True)
class ExactMatchConfig:
    """Evaluation by exact match of generated assistant turns."""

    path: str | None = None
    """JSONL file of conversations, each with a `task`, whose assistant turns the model must reproduce; `demo` = the bundled
    ones. null: off."""
    max_items: int | None = number(None, 1, COUNT)
    """Items per task; null: all."""
    max_new_tokens: int = number(64, 1, 10_000_000)


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Validation, benchmarks and sample answers."""

    every: int | str | None = number(200, 0, STEPS)
    """Steps between two validations, which also come before and after training; `epoch`: at the end of each epoch; null: only
    before and after; 0: never."""
    tokens: int | None = number(None, 1, MANY)
    """Tokens of the validation split that are used (a fixed subset); null: all."""
    batch_size: int = number(128, 1, 10_000_000)
    """Sequences generated, or scored, together on a rank."""
    batch_tokens: int = number(131_072, 1, MANY)
    """Most tokens of such a batch, with padding and the longest answers: it limits the memory of the KV cache."""
    sharded: bool | None = None
    """Over several ranks: true: the model answers as it is laid out for training; false: every rank answers with a copy of the
    whole model; null: with copies where they fit in memory."""
    tasks: list[str] = field(default_factory=list)
    """For `runner=evaluate`: tasks of the lm-evaluation-harness by name (`mmlu`, `gsm8k`, ...), `spelling_bee`, task files or
    folders of them (YAML), and `chatcore`."""
    data_dir: str | None = None
    """Folder with the items of tasks as `<task>_<split>.jsonl`; null: from the hub."""
    max_items: int | None = number(None, 1, COUNT)
    """Use only the first items of each of `tasks`; null: all."""
    num_fewshot: int | None = number(None, 0, 10_000)
    """Solved examples before a question; null: the default of the task."""
    max_new_tokens: int | None = number(None, 1, 10_000_000)
    """Longest answer of generative tasks; null: the default of the task, 512 for ChatCORE."""
    chat_template: bool = True
    """Format the prompts of `tasks` with the chat template; false: as plain text, as for base models."""
    thinking: bool = False
    """Use the template's thinking mode in generative tasks; the reasoning is removed from the answer."""
    allow_code: bool = False
    """Run the code that the model writes for HumanEval, in a sandbox. False: that task is an error, and skipped in
    ChatCORE."""
    chatcore_every: int = number(0, 0, STEPS)
    """Steps between two ChatCORE evaluations, which then also run before and after training; 0 = never."""
    chatcore_tasks: list[str] = field(default_factory=lambda: list(CHATCORE_TASKS))
    """Tasks of the ChatCORE mean."""
    chatcore_max_categorical: int | None = number(None, 1, COUNT)
    """Items of each multiple-choice task (ARC, MMLU); null: all."""
    chatcore_max_generative: int | None = number(None, 1, COUNT)
    """Items of each task whose answers are generated (GSM8K, HumanEval, SpellingBee); null: all."""
    exact_match: ExactMatchConfig = field(default_factory=ExactMatchConfig)
    samples: list[str] = field(default_factory=list)
    """Prompts answered before and after training."""
    sample_tokens: int = number(96, 1, 10_000_000)
    tools: str | None = None
    """Tools available in the samples: a JSON file with a list of definitions, or `demo` (bundled tools, which are
    executed)."""
