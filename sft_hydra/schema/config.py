"""The config's dataclasses: `SftConfig` and the sections about the run itself. schema/data.py has the data, schema/optim.py
optimizers and schedules.

A dataclass declares every key with its type and default; the YAML in `conf/` holds the values we choose for a model, a data
set or a cluster. The text under a field is its documentation (docs/config.md is generated from it).
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
    train = "train"
    data_prep = "data_prep"
    generate = "generate"
    evaluate = "evaluate"
    export = "export"
    inspect = "inspect"


class Device(Enum):
    auto = "auto"
    cuda = "cuda"
    cpu = "cpu"
    mps = "mps"


class Precision(Enum):
    bf16 = "bf16"
    fp32 = "fp32"


class Recompute(Enum):
    none = "none"
    selective = "selective"
    full = "full"


class ClusterKind(Enum):
    local = "local"
    slurm = "slurm"


EPOCH = "epoch"  # value of eval.every


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    name: str = MISSING
    """Short name; part of the run's name."""
    path: str | None = None
    """Hub id or folder of a Hugging Face model. null: random start from `architecture`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config.json. The model itself when `path` is null; else hints, so that a dry run needs no
    network. What a readable `path` says goes first."""
    generic: bool = False
    """True: train through the transformers implementation (FSDP and LoRA only)."""
    init_std: float = number(0.02, 0, 100)
    """Standard deviation of a random start."""


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    path: str | None = None
    """Folder of an adapter in PEFT's format to start from, from the peft library or from here; it alone implies `peft=lora`.
    Rank, alpha, scaling and targets are the adapter's; with `model.path=null` the base is the one that it names."""
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
    """Everything linear but these. Not together with `target_modules`."""
    match_all_linear: bool = False
    """Every linear layer but the head; overrides `target_modules`."""
    a_init: str = "xavier"
    """`xavier`, `kaiming` (`uniform` is another name of it) or `normal`."""
    quantize_base: str | None = None
    """What the frozen weights of linear layers are kept in: `nf4` (4 bits, double quantization; `peft=qlora` sets it),
    `int8` (8 bits, a scale for each row), null: the precision that is computed in. Without tensor parallelism."""
    modules_to_save: list[str] = field(default_factory=list)
    """Trained in full beside the adapters: `embed_tokens`, `lm_head`. Where the head is the embedding, either means both."""
    trainable_new_tokens: bool = False
    """Train the rows of `tokenizer.add_tokens` and `add_special_tokens` in embedding and head, and no other row of them."""
    use_dora: bool = False
    """DoRA: also train the length of each row of the adapted weights. Not for routed experts."""
    rank_stabilized: bool = False
    """Scale by `alpha / sqrt(dim)`."""
    rank_pattern: dict[str, int] = number({}, 1, 100_000)
    """Ranks of layers that differ from `dim`: regular expression of the end of a name -> rank, as in PEFT."""
    alpha_pattern: dict[str, float] = number({}, 0, 1e6, above=True)
    """The same for `alpha`."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
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
    kind: ClusterKind = ClusterKind.local
    nodes: int = number(1, 1, 10_000)
    gpus_per_node: int | None = number(None, 1, 1_000)
    """Ranks on each node (on a CPU: processes). null: on this machine one for each GPU that it shows (CUDA_VISIBLE_DEVICES), one
    where there is none and for the demo; on Slurm 8."""
    gpu_memory_gib: float = number(80, 0, 100_000, above=True)
    """Of one GPU, for the plan: what does not fit is not chosen. H100 80, H200 141."""
    partition: str | None = None
    cpu_partition: str | None = None
    """Partition of the jobs that prepare data; null: `partition`."""
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    time: str | None = None
    """Time limit as Slurm writes it, `HH:MM:SS` or `D-HH:MM:SS`."""
    cpus_per_task: int | None = number(None, 1, 100_000)
    """CPU cores of one rank; null: the site's default, often 1."""
    mem: str | None = None
    """Memory of each node as Slurm writes it, `200G`; 0 = all of it; null: the site's default."""
    exclusive: bool = False
    """Whole nodes: nobody else's jobs beside this one."""
    sbatch_args: list[str] = field(default_factory=list)
    """Further options of the job, as sbatch takes them: `--constraint=h100`. Not for jobs that prepare data."""
    srun_args: list[str] = field(default_factory=list)
    """Further options for starting the ranks, as srun takes them."""
    container_image: str | None = None
    """Image for the ranks, through pyxis: an enroot URI or a .sqsh file."""
    container_mounts: list[str] = field(default_factory=list)
    """`host:container[:ro]`. The working directory and `output_dir` are mounted anyway."""
    python: str | None = None
    """Interpreter on the nodes; null: this one, in a container `python`."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables set in the job. Secrets are refused here: pass them by name, see `env_pass`."""
    env_pass: list[str] = field(default_factory=lambda: ["HF_HOME", "HF_DATASETS_CACHE", "WANDB_API_KEY", "HF_TOKEN"])
    """Variables handed on from the submitting shell, by name; their values are never written down."""
    setup: list[str] = field(default_factory=list)
    """Shell lines run once, on the first node, before the ranks start; what they export reaches every rank."""
    start_timeout: int = number(600, 1, 1_000_000)
    """Seconds that ranks wait for each other at the start."""
    stop_seconds: int = number(120, 0, 1_000_000)
    """Seconds before the time limit at which the ranks save a checkpoint and the job queues itself again."""
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
    train_iters: int | None = number(None, -1, STEPS)
    """Optimizer steps; -1 = one epoch. At most one of train_iters, epochs, train_samples; none of them: one epoch."""
    epochs: float | None = number(None, 0, 1e6, above=True)
    train_samples: int | None = number(None, 1, MANY)
    """Length of training in packed rows."""
    global_batch_size: int | None = number(None, 1, 10_000_000)
    """Packed rows per optimizer step; null and no global_batch_tokens: 8."""
    global_batch_tokens: int | None = number(None, 1, MANY)
    """Tokens per optimizer step instead: rows = tokens / seq_length."""
    micro_batch_size: int = number(1, 1, 10_000_000)
    """Packed rows of one forward pass on one data-parallel rank."""
    precision: Precision | None = None
    """null: bf16 on CUDA, fp32 on a CPU. Master weights and reductions are fp32 either way."""
    freeze: list[str] = field(default_factory=list)
    """Full fine-tuning: parameters that are not trained, by names of parameters or modules, wildcards allowed
    (`[embed_tokens,'model.layers.0.*']`)."""
    trainable: list[str] | None = None
    """The other way round: only these are trained, without those of `freeze`. null or []: all."""
    fp8: bool = False
    """Multiply in fp8 in the linear layers of all blocks (routed experts excepted), through torchao. Full fine-tuning in
    bf16 on H100-like devices, without tensor parallelism."""
    calculate_per_token_loss: bool = True
    """True: loss sum / trained tokens of the global batch. false: loss sum / conversations with a trained token."""
    router_aux_loss: float = number(0.0, 0, 1_000)
    """Mixture of experts with softmax routers (Qwen3-MoE): factor of the loss that has experts used evenly, over all tokens
    of the global batch. 0 = off."""
    router_bias_update_rate: float = number(0.0, 0, 1_000)
    """Mixture of experts with sigmoid routers (Nemotron-H): how far a step moves the bias of each expert, up if it got fewer
    tokens than its layer's mean, down if more. 0 = frozen."""
    clip_grad: float | None = number(1.0, 0, 1e9)
    """Largest norm of the gradient; null: no clipping."""
    recompute: Recompute = Recompute.none
    """Activation checkpointing: what blocks compute again in the backward pass. `full`: everything; `selective`: what is
    cheap, everything but matrix products and attention."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in the host's memory; blocks travel to the device when they are needed."""
    compile: bool = False
    """torch.compile each block by itself."""
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    ema_decay: float | None = number(None, 0, 1, below=True)
    """Keep an exponential moving average of the trained weights, which a step moves by 1 - ema_decay toward them; it costs
    4 bytes per trained weight. `export.ema` exports it. null: none."""
    log_interval: int = number(10, 1, STEPS)
    """Steps between two lines on a console that is not a terminal. metrics.jsonl has every step."""
    num_threads: int | None = number(None, 1, 100_000)
    """Threads of a CPU run; null: torch's own choice."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    save: str | None = None
    """Folder; null: `checkpoints/` in the run's folder."""
    load: str | None = None
    """A checkpoint of ours (its folder, or one `step_<N>`) to start the weights from. Resuming a run goes first. What is null
    of `seq_length`, `train.global_batch_size`, `train.micro_batch_size` and the rates of `optimizer` is taken from it."""
    load_optimizer: bool = False
    """Take the optimizer's state from `load` too; rates are reset."""
    interval: int | None = number(500, 1, STEPS)
    """Steps between checkpoints; the last step is always saved. null: only the last."""
    async_save: bool = False
    """Write checkpoints while training goes on, from a copy in the memory of the host."""
    keep_last: int = number(2, 1, STEPS)
    keep_best: str | None = None
    """A metric of metrics.jsonl, `val/loss` for instance: the checkpoint that is best by it is kept too. Of scores
    (`eval/...`, `chatcore...`) more is better, of all else less."""


@dataclass(kw_only=True, slots=True)
class ExactMatchConfig:
    path: str | None = None
    """Conversations whose assistant turns the model must write itself, JSONL with a `task` each; `demo` = the bundled
    ones. null: this evaluation is off."""
    max_items: int | None = number(None, 1, COUNT)
    """Items per task; null: all."""
    max_new_tokens: int = number(64, 1, 10_000_000)


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    every: int | str | None = number(200, 0, STEPS)
    """Steps between two validations, which also come before and after training; `epoch`: at the end of each epoch; null: only
    before and after; 0: never."""
    tokens: int | None = number(None, 1, MANY)
    """Tokens of the validation split that are used, always the same ones; null: all."""
    batch_size: int = number(128, 1, 10_000_000)
    """Sequences generated, or scored, together on a rank."""
    batch_tokens: int = number(131_072, 1, MANY)
    """Most tokens of such a batch, with padding and the longest answers: it limits the memory of the KV cache."""
    sharded: bool | None = None
    """Over several ranks: true: the model answers as it is laid out for training; false: every rank answers with a copy of the
    whole model; null: with copies where they fit in memory."""
    tasks: list[str] = field(default_factory=list)
    """Of `runner=evaluate`: tasks of the lm-evaluation-harness by name (`mmlu`, `gsm8k`, ...), `spelling_bee`, task files or
    folders of them (YAML), and `chatcore`."""
    data_dir: str | None = None
    """Folder with the items of tasks as `<task>_<split>.jsonl`; null: from the hub."""
    max_items: int | None = number(None, 1, COUNT)
    """Items of each of `tasks`, the first ones; null: all."""
    num_fewshot: int | None = number(None, 0, 10_000)
    """Solved examples before a question; null: as many as the task says."""
    max_new_tokens: int | None = number(None, 1, 10_000_000)
    """Longest answer of generative tasks; null: what the task says, 512 for ChatCORE."""
    chat_template: bool = True
    """Ask `tasks` in the model's chat template; false: as bare text, which is how base models are compared."""
    thinking: bool = False
    """Generative tasks ask in the template's thinking mode; the reasoning is left out of the answer."""
    allow_code: bool = False
    """Run the code that the model writes for HumanEval, in a sandbox. Without it that task is refused, and left out of
    ChatCORE."""
    chatcore_every: int = number(0, 0, STEPS)
    """Steps between two ChatCORE evaluations, which then also come before and after training; 0 = never."""
    chatcore_tasks: list[str] = field(default_factory=lambda: list(CHATCORE_TASKS))
    """The tasks whose mean it is."""
    chatcore_max_categorical: int | None = number(None, 1, COUNT)
    """Items of each multiple-choice task (ARC, MMLU); null: all."""
    chatcore_max_generative: int | None = number(None, 1, COUNT)
    """Items of each task whose answers are generated (GSM8K, HumanEval, SpellingBee); null: all."""
    exact_match: ExactMatchConfig = field(default_factory=ExactMatchConfig)
    samples: list[str] = field(default_factory=list)
    """Prompts that are answered before and after training."""
    sample_tokens: int = number(96, 1, 10_000_000)
    tools: str | None = None
    """Tools offered with the samples: a JSON file with a list of definitions, or `demo` (the bundled ones, which are
    executed)."""


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    prompts: list[str] = field(default_factory=list)
    prompt_file: str | None = None
    """JSONL: a `prompt` or `messages` (and `tools`) a line; or plain text, one prompt a line."""
    interactive: bool = False
    system: str | None = None
    tools: str | None = None
    """Tools offered with every prompt, as in `eval.tools`. null: those of `eval.tools`."""
    thinking: bool = False
    """Ask in the template's thinking mode."""
    max_new_tokens: int = number(256, 1, 10_000_000)
    temperature: float = number(0.0, 0, 1_000)
    """0 = greedy."""
    top_p: float = number(1.0, 0, 1, above=True)


class ExportFormat(Enum):
    hf = "hf"
    megatron = "megatron"


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    auto: bool = True
    """Export by itself at the end of training."""
    format: ExportFormat = ExportFormat.hf
    """`hf`: a Hugging Face folder. `megatron`: a torch_dist checkpoint that Megatron-Core loads (LoRA needs `merge`)."""
    formats: list[ExportFormat] | None = None
    """Several of them; null: only `format`."""
    path: str | None = None
    """Folder; null: `hf/` or `megatron/` in the run's folder. Of two formats the other lies beside it, `<path>_megatron`."""
    ema: bool = False
    """Export the moving average of the weights (`train.ema_decay`) in place of the last ones."""
    merge: bool = False
    """LoRA: write the merged model instead of the adapter."""
    push_to: str | None = None
    """Repository on the Hugging Face hub, `owner/name`, that the verified export is uploaded to, with the token in HF_TOKEN.
    null: nothing leaves this machine."""
    public: bool = False
    """A repository that is made for `push_to` is public; false: private."""


@dataclass(kw_only=True, slots=True)
class InspectConfig:
    split: str = "train"
    count: int = number(3, 1, COUNT)
    """Packed rows shown in the terminal."""
    html: bool = False
    """Also write one self-contained page, `inspect.html` in the run's folder."""
    conversations: int = number(10_000, 1, COUNT)
    """About so many conversations are on the page: all packed rows, or rows spread evenly over the split."""


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    project: str = "sft_hydra"
    entity: str | None = None
    """Team or user; null: your default."""
    mode: str = "online"
    """`online`, `offline` (written to `wandb/` in the run's folder; `wandb sync` uploads it later) or `disabled`."""


@dataclass(kw_only=True, slots=True)
class TensorboardConfig:
    folder: str | None = None
    """Parent of the event files, with a folder for each run; null: `tensorboard/` in the run's folder."""


@dataclass(kw_only=True, slots=True)
class MlflowConfig:
    tracking_uri: str | None = None
    """A server, or `sqlite:///runs.db`; null: what MLflow finds, MLFLOW_TRACKING_URI or a file here."""
    experiment: str = "sft_hydra"
    """Experiment that the run belongs to; made if it is not there."""


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Trackers beside the console and `metrics.jsonl`, which are always there."""

    wandb: WandbConfig | None = None
    tensorboard: TensorboardConfig | None = None
    mlflow: MlflowConfig | None = None


@dataclass(kw_only=True, slots=True)
class SftConfig:
    runner: Runner = Runner.train
    """What to do."""
    name: str | None = None
    """Name of the run; null: `demo` for the pure default, else `<model>-<data>-<peft>`."""
    output_dir: str = "outputs"
    """Parent of the run folders."""
    seq_length: int = number(4096, 1, 100_000_000)
    """Size of a packed row and length of training rows: the one knob for both."""
    seed: int = number(1234, 0, 2**32 - 1)
    dry_run: bool = False
    """Print what would happen; start and write nothing."""
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
