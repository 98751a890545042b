"""The config's dataclasses: `SftConfig` and most of its sections. Data and tokenizer are in schema/data.py, optimizers and
schedules in schema/optim.py.

A dataclass declares every key with its type and default; the YAML in `conf/` sets values for a model, a data set or a
cluster. The text under a field is its documentation (docs/config.md is generated from it).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from sft_hydra.schema.data import DataConfig, TokenizerConfig
from sft_hydra.schema.optim import AdamW, Optimizer, Scheduler
from sft_hydra.schema.ranges import COUNT, MANY, STEPS, number

CHATCORE_TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling_bee")


class Runner(Enum):
    """What a command does."""

    train = "train"
    data_prep = "data_prep"
    generate = "generate"
    evaluate = "evaluate"
    export = "export"
    inspect = "inspect"


class Device(Enum):
    """Where the model is."""

    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"
    mps = "mps"


class Precision(Enum):
    """Compute dtype of the forward and backward pass."""

    bf16 = "bf16"
    fp32 = "fp32"


class Recompute(Enum):
    """What activation checkpointing recomputes in the backward pass."""

    none = "none"
    selective = "selective"
    full = "full"


class ClusterKind(Enum):
    """How ranks are started: on this machine or as a Slurm job."""

    local = "local"
    slurm = "slurm"


EPOCH = "epoch"  # value of eval.every


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The model: weights on disk or on the hub, or an architecture with random initialization."""

    name: str = MISSING
    """Short name; part of the run's name."""
    path: str | None = None
    """Hub id or folder of a Hugging Face model. null: random initialization with `architecture`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config.json. With `path=null` they define the model; else a dry run uses them if
    `path` cannot be read without a network."""
    generic: bool = False
    """True: train through the transformers implementation (FSDP and LoRA only)."""
    init_std: float = number(0.02, 0, 100)
    """Standard deviation of random initialization."""


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021), in the terms of the peft library."""

    path: str | None = None
    """Folder of an adapter in PEFT's format to start from, written by the peft library or by sft_hydra; implies
    `peft=lora`. Rank, alpha, scaling and targets are those of the adapter; with `model.path=null` so is the base model."""
    dim: int = number(32, 1, 100_000)
    """Rank."""
    alpha: float = number(32.0, 0, 1e6, above=True)
    """Scale: the update is `alpha / dim * B @ A`."""
    dropout: float = number(0.0, 0, 1, below=True)
    dropout_position: str = "pre"
    """`pre` (on the input) or `post` (on the update)."""
    target_modules: list[str] | None = None
    """Module names, wildcards allowed (`*.q_proj`). null or []: the family's linear layers. `linear_qkv`, `linear_proj`,
    `linear_fc1`, `linear_fc2`, `in_proj`, `out_proj` are accepted as aliases."""
    exclude_modules: list[str] | None = None
    """Adapt every linear layer except these. Excludes `target_modules`."""
    match_all_linear: bool = False
    """Adapt every linear layer except the head; overrides `target_modules`."""
    a_init: str = "xavier"
    """`xavier`, `kaiming` (alias `uniform`) or `normal`."""
    quantize_base: str | None = None
    """What the frozen weights of linear layers are kept in: `nf4` (4 bits, double quantization; `peft=qlora` sets it),
    `int8` (8 bits, a scale for each row), null: the precision that is computed in. Without tensor parallelism."""
    init_lora_weights: str | None = None
    """As in PEFT: `gaussian` (the same as `a_init=normal`), or A and B initialized from the weight: `pissa`, `pissa_niter_<n>`
    (faster: a randomized decomposition with n iterations), `olora`. null: A by `a_init`, B zero."""
    modules_to_save: list[str] = field(default_factory=list)
    """Trained in full beside the adapters: `embed_tokens`, `lm_head`. Where the head is the embedding, either means both."""
    trainable_new_tokens: bool = False
    """Train the rows of `tokenizer.add_tokens` and `add_special_tokens` in embedding and head, and no other row of them."""
    use_dora: bool = False
    """DoRA: also train the length of each row of the adapted weights. Not for routed experts."""
    rank_stabilized: bool = False
    """Scale by `alpha / sqrt(dim)`."""
    rank_pattern: dict[str, int] = number({}, 1, 100_000)
    """Ranks of layers that differ from `dim`: regular expression of the end of the layer name -> rank, as in PEFT."""
    alpha_pattern: dict[str, float] = number({}, 0, 1e6, above=True)
    """The same for `alpha`."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """Sizes of the parallel layout; the remaining ranks are data-parallel (FSDP)."""

    tp: int | None = number(None, 1, 100_000)
    """Tensor parallel size; null: chosen for the model and the cluster."""
    pp: int | None = number(None, 1, 100_000)
    """Pipeline parallel size; null: chosen."""
    vp: int = number(1, 1, 100_000)
    """Stages that each pipeline rank holds; with more than one the schedule is interleaved."""
    cp: int | None = number(None, 1, 100_000)
    """Context parallel size; null: chosen."""
    ep: int | None = number(None, 1, 100_000)
    """Expert parallel size; null: chosen."""
    dp_replicate: int = number(1, 1, 100_000)
    """Copies of the sharded model (HSDP). The FSDP degree is world / (tp*pp*cp*dp_replicate)."""


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Nodes and GPUs of the run, and options of its Slurm job."""

    kind: ClusterKind = ClusterKind.local
    nodes: int = number(1, 1, 10_000)
    gpus_per_node: int | None = number(None, 1, 1_000)
    """Ranks on each node (on a CPU: processes). null: locally one per visible GPU (CUDA_VISIBLE_DEVICES), one without
    GPUs and for the demo; on Slurm 8."""
    gpu_memory_gib: float = number(80, 0, 100_000, above=True)
    """Memory of one GPU, for the choice of a layout. H100 80, H200 141."""
    partition: str | None = None
    cpu_partition: str | None = None
    """Partition of the jobs that prepare data; null: `partition`."""
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    time: str | None = None
    """Time limit in Slurm's format, `HH:MM:SS` or `D-HH:MM:SS`."""
    cpus_per_task: int | None = number(None, 1, 100_000)
    """CPU cores of one rank; null: the site's default, often 1."""
    mem: str | None = None
    """Memory of each node in Slurm's format, `200G`; 0 = all of it; null: the site's default."""
    exclusive: bool = False
    """Reserve whole nodes for this job."""
    sbatch_args: list[str] = field(default_factory=list)
    """Further options of sbatch: `--constraint=h100`. Not used for jobs that prepare data."""
    srun_args: list[str] = field(default_factory=list)
    """Further options of srun, which starts the ranks."""
    container_image: str | None = None
    """Image for the ranks, through pyxis: an enroot URI or a .sqsh file."""
    container_mounts: list[str] = field(default_factory=list)
    """`host:container[:ro]`. The working directory and `output_dir` are always mounted."""
    python: str | None = None
    """Python interpreter on the nodes; null: the current one, in a container `python`."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job. Secrets are an error: pass them by name with `env_pass`."""
    env_pass: list[str] = field(default_factory=lambda: ["HF_HOME", "HF_DATASETS_CACHE", "WANDB_API_KEY", "HF_TOKEN"])
    """Names of environment variables passed on from the submitting shell; their values are never written to disk."""
    setup: list[str] = field(default_factory=list)
    """Shell lines run once, on the first node, before the ranks start; variables that they export reach every rank."""
    start_timeout: int = number(600, 1, 1_000_000)
    """Timeout in seconds for the ranks to connect at the start."""
    stop_seconds: int = number(120, 0, 1_000_000)
    """Seconds before the time limit at which the ranks save a checkpoint and the job requeues itself."""
    attach: bool = False
    """True: follow the job's log until it ends. false: print the job id and return."""
    max_parallel: int | None = number(None, 1, 1_000_000)
    """Jobs of one sweep that may run at the same time."""


@dataclass(kw_only=True, slots=True)
class EarlyStoppingConfig:
    metric: str | None = None
    """Metric of validation or ChatCORE, `val/loss` for instance: training ends early once it no longer improves. Of scores
    (`eval/...`) more is better, of all else less. null: never."""
    patience: int = number(3, 1, STEPS)
    """Measurements in a row without improvement after which training ends."""
    min_delta: float = number(0.0, 0, 1e9)
    """What counts as improvement: more than this."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Length of training, batch sizes, precision and memory options."""

    train_iters: int | None = number(None, -1, STEPS)
    """Optimizer steps; -1 = one epoch. At most one of train_iters, epochs, train_samples; none: one epoch."""
    epochs: float | None = number(None, 0, 1e6, above=True)
    train_samples: int | None = number(None, 1, MANY)
    """Length of training in packed sequences."""
    global_batch_size: int | None = number(None, 1, 10_000_000)
    """Packed sequences per optimizer step; null without global_batch_tokens: 8."""
    global_batch_tokens: int | None = number(None, 1, MANY)
    """Alternative: tokens per optimizer step, a multiple of seq_length."""
    micro_batch_size: int = number(1, 1, 10_000_000)
    """Packed sequences of one forward pass on one data-parallel rank."""
    precision: Precision | None = None
    """null: bf16 on CUDA, fp32 on a CPU. Master weights and reductions are fp32 either way."""
    freeze: list[str] = field(default_factory=list)
    """Full fine-tuning: parameters that are not trained, by names of parameters or modules, wildcards allowed
    (`[embed_tokens,'model.layers.0.*']`)."""
    trainable: list[str] | None = None
    """The other way round: only these are trained, without those of `freeze`. null or []: all."""
    fp8: bool = False
    """Compute the linear layers of all blocks (except routed experts) in fp8, through torchao. For full fine-tuning in bf16 on
    H100 and later, without tensor parallelism."""
    calculate_per_token_loss: bool = True
    """True: loss sum / supervised tokens of the global batch. False: loss sum / conversations with a supervised token."""
    router_aux_loss: float = number(0.0, 0, 1_000)
    """Mixture of experts with softmax routers (Qwen3-MoE): factor of the load-balancing loss over all tokens of the
    global batch. 0 = off."""
    router_bias_update_rate: float = number(0.0, 0, 1_000)
    """Mixture of experts with sigmoid routers (Nemotron-H): change of each expert's selection bias per step, up if it got
    fewer tokens than the mean of its layer, down if more. 0 = frozen."""
    clip_grad: float | None = number(1.0, 0, 1e9)
    """Clip the gradient to this norm; null: off."""
    recompute: Recompute = Recompute.none
    """Activation checkpointing: what blocks recompute in the backward pass. `full`: everything; `selective`: everything but
    matrix products and attention."""
    neftune_alpha: float | None = number(None, 0, 1e6, above=True)
    """NEFTune: uniform noise on the embeddings in training, within alpha / sqrt(L * hidden size), where L is the length of
    each conversation by itself. The paper uses 5 to 15. null: none."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in host memory; blocks are copied to the device when needed."""
    compile: bool = False
    """torch.compile each block by itself. With `recompute=selective`, what is kept is decided in each graph: more than
    without `compile`."""
    deterministic: bool = False
    """Use deterministic algorithms on CUDA, so that a step repeats bit for bit and a resumed run equals a straight one. Slower
    backward passes of attention, and sorting instead of atomic additions; an operation without such an algorithm ends the run."""
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    ema_decay: float | None = number(None, 0, 1, below=True)
    """Keep an exponential moving average of the trained weights, which a step moves by 1 - ema_decay toward them; it costs
    4 bytes per trained weight. `export.ema` exports it. null: none."""
    log_interval: int = number(10, 1, STEPS)
    """Steps between two lines of output that is not a terminal. metrics.jsonl has every step."""
    num_threads: int | None = number(None, 1, 100_000)
    """Threads of a CPU run; null: torch's default."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written, which are kept, and which one is loaded."""

    save: str | None = None
    """Folder; null: `checkpoints/` in the run's folder."""
    load: str | None = None
    """A checkpoint of sft_hydra (its folder, or one `step_<N>`) with the initial weights. Resuming a run takes precedence. Those
    of `seq_length`, `train.global_batch_size`, `train.micro_batch_size` and the learning rates that are null are taken from it."""
    load_optimizer: bool = False
    """Also load the optimizer state from `load`; learning rates are those of the config."""
    interval: int | None = number(500, 1, STEPS)
    """Steps between checkpoints; the last step is always saved. null: only the last."""
    async_save: bool = False
    """Write checkpoints in the background, from a copy in host memory."""
    keep_last: int = number(2, 1, STEPS)
    keep_best: str | None = None
    """A metric of metrics.jsonl, `val/loss` for instance: the checkpoint with its best value is also kept. Higher is
    better for scores (`eval/...`, `chatcore...`), lower for all others."""


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


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    """Weights & Biases."""

    project: str = "sft_hydra"
    entity: str | None = None
    """Team or user; null: the default of the account."""
    mode: str = "online"
    """`online`, `offline` (written to `wandb/` in the run's folder, for `wandb sync`) or `disabled`."""


@dataclass(kw_only=True, slots=True)
class TensorboardConfig:
    """TensorBoard."""

    folder: str | None = None
    """Parent of the event files, with a folder for each run; null: `tensorboard/` in the run's folder."""


@dataclass(kw_only=True, slots=True)
class MlflowConfig:
    """MLflow."""

    tracking_uri: str | None = None
    """A server, or `sqlite:///runs.db`; null: MLflow's default (MLFLOW_TRACKING_URI, or a local file)."""
    experiment: str = "sft_hydra"
    """Experiment of the run; created if it does not exist."""


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Trackers, in addition to the console and `metrics.jsonl`, which are always written."""

    wandb: WandbConfig | None = None
    tensorboard: TensorboardConfig | None = None
    mlflow: MlflowConfig | None = None


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """The whole config of a command."""

    runner: Runner = Runner.train
    """What the command does."""
    name: str | None = None
    """Name of the run; null: `demo` for the default command, else `<model>-<data>-<peft>`."""
    output_dir: str = "outputs"
    """Parent of the run folders."""
    seq_length: int = number(4096, 1, 100_000_000)
    """Tokens of a packed sequence, in the packed set and in training."""
    seed: int = number(1234, 0, 2**32 - 1)
    dry_run: bool = False
    """Print the plan without starting or writing anything."""
    device: Device = Device.auto
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    peft: LoraConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: Optimizer = field(default_factory=AdamW)
    scheduler: Scheduler = field(default_factory=Scheduler)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    run_dir: str | None = None
    """Folder of this run; filled in when the config is resolved (never set by hand)."""
