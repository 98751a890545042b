"""Rules between keys: each refuses what it is for, and says the fix."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig

Resolved = Callable[..., SftConfig]
DRY = "dry_run=true"

CASES = [
    (["train.train_iters=5", "train.epochs=2"], "train.train_iters=5 and train.epochs=2.0: set only one of them; e.g. add train.train_iters=null"),
    (["train.global_batch_tokens=1024"], "add train.global_batch_size=null"),
    (["train.global_batch_size=null", "train.global_batch_tokens=1000"], "not a multiple of seq_length=256; nearest: 1024"),
    (["cluster.gpus_per_node=3", DRY], "is not a multiple of the data-parallel size 3; use train.global_batch_size=6"),
    (["parallel.tp=2"], "parallel.tp*pp*cp = 2*1*1 = 2 does not divide the world of 1"),
    (["parallel.tp=8", "cluster.gpus_per_node=8", DRY], "parallel.tp=8 does not divide the model's 4 attention heads"),
    (["seq_length=0"], "seq_length=0 must be at least 1"),
    (["optimizer.lr=-1"], "optimizer.lr=-1.0 must be 0 or more"),
    (["data.split.train=1", "data.split.test=-0.01"], "data.split.test=-0.01 must be 0 or more"),
    (["train.train_iters=-2"], "train.train_iters=-2 must be at least -1"),
    (["optimizer=adamw", "optimizer.state_bits=4"], "optimizer.state_bits=4 is not one of 8, 32"),
    (["optimizer=adamw", "optimizer.state_bits=8", "train.cpu_offload=true"], "optimizer.state_bits=8 with train.cpu_offload=true"),
    (["train.fp8=true", "device=cpu"], "train.fp8=true: device=cpu does not support fp8"),
    (["train.fp8=true", "peft=lora"], "train.fp8=true with peft=lora"),
    (["train.fp8=true", "parallel.tp=2", "cluster.gpus_per_node=2"], "train.fp8=true with parallel.tp=2"),
    (["peft=lora", "train.freeze=[embed_tokens]"], "train.freeze=['embed_tokens'] is for full fine-tuning"),
    (["train.freeze=[query]"], "train.freeze: 'query' matches no parameter of this model"),
    (["train.trainable=['*.layers.0.*']", "train.freeze=[layers]"], "leaves no parameter to train"),
    (["peft=lora", "peft.quantize_base=fp4"], "peft.quantize_base=fp4 is not one of nf4, int8"),
    (["peft=qlora", "peft.use_dora=true"], "peft.use_dora=true with peft.quantize_base=nf4"),
    (["peft=qlora", "peft.init_lora_weights=pissa"], "peft.init_lora_weights=pissa with peft.quantize_base=nf4"),
    (["train.freeze=[norm]", "parallel.pp=2", "cluster.gpus_per_node=2", DRY], "with optimizer=muon and a frozen part"),
    (["peft=qlora", "parallel.tp=2", "cluster.gpus_per_node=2", DRY], "parallel.tp=2 with peft.quantize_base=nf4"),
    (["train.fp8=true", "train.precision=fp32"], "train.fp8=true with train.precision=fp32"),
    (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9] must be two numbers"),
    (["data.split.train=0.5"], "they must sum to 1"),
    (["scheduler.kind=linear"], "scheduler.kind=linear is not one of cosine, warmdown, wsd, constant"),
    (["peft=lora", "peft.dropout_position=middle"], "is not one of pre, post"),
    (["data.sources.train.format=csv"], "data.sources.train.format=csv is not one of auto,"),
    (["scheduler.warmup_iters=10"], "scheduler.warmup_iters=10 and scheduler.warmup_ratio=0.03: set only one of them"),
    (["scheduler.min_lr=1e-6", "scheduler.min_lr_frac=0.1"], "scheduler.min_lr=1e-06 and scheduler.min_lr_frac=0.1"),
    (["scheduler.min_lr=1"], "scheduler.min_lr=1 is above optimizer.lr=0.01"),
    (["scheduler=cosine", "scheduler.decay_iters=5"], "has no decay phase"),
    (["scheduler=wsd", "scheduler.decay_ratio=null"], "needs a decay phase"),
    (["peft=lora", "peft.target_modules=[q_proj]", "peft.exclude_modules=[k_proj]"], "set only one of them"),
    (["peft=lora", "peft.match_all_linear=true", "peft.exclude_modules=[k_proj]"], "peft.match_all_linear=true"),
    (["optimizer=adamw", "optimizer.lora_plus_ratio=16"], "optimizer.lora_plus_ratio=16 is for LoRA"),
    (["peft=lora", "peft.init_lora_weights=eva"], "eva is not one of gaussian, olora, pissa"),
    (["peft=lora", "peft.init_lora_weights=pissa", "peft.a_init=normal"], "both set the initialization of A"),
    (["peft=lora", "peft.modules_to_save=[norm]"], "norm is not one of embed_tokens, lm_head"),
    (["peft=lora", "peft.trainable_new_tokens=true"], "there are no new tokens"),
    (["peft=lora", 'tokenizer.add_tokens=["<note>"]'], "an adapter holds no rows for them"),
    (
        [
            "peft=lora",
            'tokenizer.add_tokens=["<note>"]',
            "peft.trainable_new_tokens=true",
            "peft.modules_to_save=[embed_tokens,lm_head]",
        ],
        "only the new rows, or whole tables; remove one of them",
    ),
    (['tokenizer.add_tokens=["<note>","<note>"]'], "['<note>'] more than once"),
    (["checkpoint.load_optimizer=true"], "needs checkpoint.load="),
    (["name=../b"], "name='../b' is not a valid folder name below output_dir"),
    (["name=/a/b"], "name='/a/b' is not a valid folder name below output_dir"),
    (["name=data"], "`data` is reserved for prepared data"),
    (["train.router_aux_loss=0.01"], "train.router_aux_loss=0.01 needs a mixture of experts with softmax routers (qwen3_moe)"),
    (["model=tiny_nemotron_h", "train.router_aux_loss=0.01"], "softmax routers (qwen3_moe), which this model is not"),
    (["train.router_bias_update_rate=0.01"], "needs a mixture of experts with sigmoid routers (nemotron_h)"),
    (["train.router_aux_loss=-1"], "train.router_aux_loss=-1.0 must be 0 or more"),
    (
        ["model=tiny_nemotron_h", "train.router_bias_update_rate=0.01", "peft=lora"],
        "updates the base model, which peft=lora freezes; remove one of them",
    ),
    (
        ["model=tiny_nemotron_h", "train.router_bias_update_rate=0.01", "parallel.pp=2", "cluster.gpus_per_node=2", "train.recompute=full", DRY],
        "with pipeline parallelism and train.recompute=full: routers would count tokens of another micro-batch",
    ),
    (["model=tiny", "model.generic=true"], "random initialization is not supported for it; set model.path"),
    (["model=hf"], "model=hf needs model.path=<folder or hub id>"),
    (["data=jsonl"], "data=jsonl has no source; set data.path=<file.jsonl>"),
    (["data=blend"], "data=blend has no source; set data.blend=<blend.json>"),
    (["+data.sources.code={}"], "data.sources.code has no path"),
    (["data.sources.train.weight=1", "data.sources.train.epochs=1"], "set only one of them"),
    (["+cluster.env.HF_TOKEN=abc"], "cluster.env.HF_TOKEN looks like a secret; export it in your shell and pass it by name"),
    (["name=hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"], "name looks like a secret"),
    (["data=jsonl", "data.path=none.jsonl"], "data.path=none.jsonl: not found in "),
    (["data=jsonl", "data.path=nodir/none.jsonl"], "the folder nodir does not exist"),
    (["data=jsonl", "data.path=chat.jsonl"], "did you mean chats.jsonl?"),
    (["data=jsonl", "data.path='*.parquet'"], "data.path=*.parquet matches no file"),
    (["data.sources.train.path=demo:nothing"], "choose one of demo:train, demo:drill, demo:heldout"),
    (["data=blend", "data.blend=none.json"], "data.blend=none.json: not found"),
    (["model=hf", "model.path=./nothing"], "model.path=./nothing: not found"),
    (["model=hf", "model.path=empty"], "has no config.json"),
    (["model=hf", "model.path=megatron"], "checkpoint_format: model.path=megatron is a Megatron checkpoint (torch_dist)"),
    (["model=hf", "model.path=megatron"], ".export_ckpt('megatron/iter_0000005', '<new folder>'), then model.path="),
    (["model=hf", "model.path=iter_0000007"], "is a Megatron checkpoint (zarr)"),
    (["model=hf", "model.path=ranks"], "is a Megatron checkpoint (one folder a rank)"),
    (["checkpoint.load=megatron"], "checkpoint_format: checkpoint.load=megatron is a Megatron checkpoint"),
    (["model=hf", "model.path=broken"], "config.json: cannot be read as JSON"),
    (["tokenizer.path=./nothing"], "tokenizer.path=./nothing: not found"),
    (["tokenizer.chat_template=nothing.jinja"], "tokenizer.chat_template=nothing.jinja: not found"),
    (["checkpoint.load=nothing"], "checkpoint.load=nothing: not found"),
    (["runner=generate", "generate.prompt_file=nothing"], "generate.prompt_file=nothing: not found"),
    (["eval.exact_match.path=nothing"], "eval.exact_match.path=nothing: not found"),
    (["data.packed_dir=packed", "seq_length=256"], "seq_length_mismatch: packed was packed for seq_length=512, this run has seq_length=256"),
    (["data.packed_dir=megatron"], "data.packed_dir=megatron: not a packed set of this project. If another tool packed it"),
    (["data.packed_dir=nothing", "data.trust_foreign=true"], "data.packed_dir=nothing: not found"),
    (["export.format=megatron", "peft=lora"], "add export.merge=true"),
    (["export.format=megatron", "export.push_to=me/it"], "use export.formats=[hf,megatron]"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def files(empty_folder: Path) -> None:
    (empty_folder / "chats.jsonl").write_text("")
    for name in ("empty", "megatron", "broken", "packed"):
        (empty_folder / name).mkdir()
    (empty_folder / "megatron" / "latest_checkpointed_iteration.txt").write_text("5")
    (empty_folder / "megatron" / "metadata.json").write_text("{}")
    (empty_folder / "iter_0000007").mkdir()
    (empty_folder / "iter_0000007" / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    (empty_folder / "ranks" / "mp_rank_00").mkdir(parents=True)
    (empty_folder / "broken" / "config.json").write_text("{")
    (empty_folder / "packed" / "metadata.json").write_text(json.dumps({"format_version": 1, "pack_size": 512}))


@pytest.mark.parametrize(
    ("argv", "expected"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_rule(argv: list[str], expected: str, resolved: Resolved) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolved(*argv)
    (problem,) = refusal.value.problems
    assert expected in problem


def test_a_secret_is_never_repeated(resolved: Resolved) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolved("+cluster.env.MY_PASSWORD=sesame")
    assert "sesame" not in str(refusal.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["data=jsonl", "data.path=owner/name"],
        ["data=jsonl", "data.path='*.jsonl'"],
        ["model=hf", "model.path=owner/name", "tokenizer.path=owner/other"],
        ["tokenizer.chat_template='{{ messages }}'"],
        ["runner=generate", "model=qwen3_0_6b", "data=jsonl"],
        ["data.packed_dir=new"],
        ["data.packed_dir=packed", "seq_length=512"],
        ["train.train_iters=null", "train.epochs=0.5"],
        ["parallel.tp=2", "cluster.gpus_per_node=4", DRY],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_right_passes(argv: list[str], resolved: Resolved) -> None:
    assert resolved(*argv).run_dir


def test_positions_that_depend_on_the_batch(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 128}
    (tmp_path / "phi").mkdir()
    (tmp_path / "phi" / "config.json").write_text(json.dumps({"model_type": "phi3", "rope_scaling": rope}))
    (problem,) = problems("model=hf", "model.path=phi", "seq_length=256", "tokenizer.path=demo", DRY)
    assert "use seq_length=128, or data.packing=none with train.micro_batch_size=1" in problem


def test_quantized_weights_are_refused(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    fields = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(fields))
    (problem,) = problems("model=hf", "model.path=small", "tokenizer.path=demo", DRY)
    assert problem.startswith("model.path=small: quantized weights (gptq) are not supported")


def test_models_that_train_through_transformers(problems: Callable[..., list[str]]) -> None:
    """All that cannot be is said at once, before anything is loaded."""
    asked = ["parallel.tp=2", "parallel.cp=2", "cluster.gpus_per_node=4", "train.compile=true"]
    experts = ["model.architecture.model_type=gpt_oss", "+model.architecture.num_local_experts=4"]
    said = "\n".join(problems(*experts, *asked))
    for text in (
        "random initialization is not supported for it; set model.path",
        "which supports dense models only; mixture-of-experts models with their own implementation are qwen3_moe and nemotron_h",
        "parallel.tp=2: model_type gpt_oss trains through the transformers implementation",
        "remove parallel.cp",
        "train.compile=true: model_type gpt_oss",
    ):
        assert text in said
