"""docs/troubleshooting.md: each row is provoked, and what a user then reads holds the row's text."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_hydra.chat.tokenizer import BUNDLED
from sft_hydra.cli import command
from sft_hydra.config.run_folder import lock_run
from sft_hydra.errors import UserError
from sft_hydra.paths import RunPaths

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho " * 10}]
DATA = "data=jsonl data.path=chats.jsonl data.num_workers=1 seq_length=64"
TRAIN = f"{DATA} eval.every=0 export.auto=false train.global_batch_size=1 device=cpu"
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
TOOL = {"name": "subtract", "parameters": {}}


def write_chats(*rows: Any) -> None:
    Path("chats.jsonl").write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def shown(said: str) -> str:
    """What a refused command answers."""
    with pytest.raises(UserError) as refusal:
        command(shlex.split(said))
    return refusal.value.describe()


def rejected(row: Any, options: str = "") -> str:
    """What rejects.jsonl says of a row between good ones."""
    write_chats(*[{"messages": CHAT}] * 8, row)
    command(shlex.split(f"runner=data_prep {DATA} data.packed_dir=packed {options}"))
    return Path("packed/rejects.jsonl").read_text()


def prepared(options: str = "") -> None:
    command(shlex.split(f"runner=data_prep {DATA} data.packed_dir=packed {options}"))


def trained_before() -> str:
    command(shlex.split(f"{TRAIN} name=mine train.train_iters=1"))
    return shown(f"{TRAIN} name=mine train.train_iters=1 optimizer.lr=0.5")


def other_tokenizer() -> str:
    prepared()
    shutil.copytree(BUNDLED, "tokenizer")
    Path("tokenizer/chat_template.jinja").write_text((BUNDLED / "chat_template.jinja").read_text() + " ")
    return shown(f"{TRAIN} data.packed_dir=packed tokenizer.path=tokenizer")


def other_length() -> str:
    prepared()
    return shown(f"{TRAIN} data.packed_dir=packed seq_length=128")


def twice_at_once() -> str:
    with lock_run(RunPaths(Path("outputs/mine"))):
        return shown(f"{TRAIN} name=mine train.train_iters=1")


def checkpoints_of_another() -> str:
    command(shlex.split(f"{TRAIN} name=mine train.train_iters=1 checkpoint.save=kept"))
    return shown(f"{TRAIN} name=other train.train_iters=1 checkpoint.save=kept")


def other_rows() -> str:
    command(shlex.split(f"{TRAIN} name=mine train.train_iters=1"))
    write_chats(*[{"messages": [CHAT[0], {"role": "assistant", "content": "he " * 10}]}] * 8)
    return shown(f"{TRAIN} name=mine train.train_iters=2")


def rewritten_input() -> str:
    from sft_hydra.data_prep import prepare as room

    with pytest.MonkeyPatch.context() as patch:
        check = room.check_rejects

        def rewrite(*given: Any) -> None:
            write_chats({"messages": CHAT})
            check(*given)

        patch.setattr(room, "check_rejects", rewrite)
        return shown(f"runner=data_prep {DATA}")


def odd_weights(value: float, kind: torch.dtype) -> str:
    from support.packed import ARCHITECTURES, make_model, oracle_of

    oracle_of(make_model(ARCHITECTURES["qwen3"] | {"vocab_size": 1024})).save_pretrained("model")
    tensors = load_file("model/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: torch.full_like(tensors[name], value).to(kind)}, "model/model.safetensors")
    return shown(f"{TRAIN} model=qwen3_0_6b model.path=model tokenizer.path=demo")


def export_over_chats() -> str:
    command(shlex.split(f"{TRAIN} name=mine train.train_iters=1"))
    return shown("runner=export name=mine export.path=chats.jsonl")


def spreadsheet() -> str:
    Path("chats.csv").write_text("question,answer\nhi,ho\n")
    return shown("data=jsonl data.path=chats.csv")


def other_columns() -> str:
    write_chats({"question": "hi", "reply": "ho"})
    return shown(f"runner=data_prep {DATA}")


def nothing_left() -> str:
    write_chats({"messages": CHAT[:1]})
    return shown(f"runner=data_prep {DATA}")


def base_tokenizer() -> str:
    Path("tokenizer").mkdir()
    shutil.copy(BUNDLED / "tokenizer.json", "tokenizer")
    return shown(f"runner=data_prep {DATA} tokenizer.path=tokenizer")


def cut_off() -> str:
    write_chats({"messages": [CHAT[0], {"role": "assistant", "content": "word " * 200}]}, *[{"messages": CHAT}] * 8)
    prepared("data.overlong=truncate name=cut")
    return Path("outputs/cut/log.txt").read_text()


def too_many_bad() -> str:
    write_chats(*[{"messages": CHAT}] * 8, "{\n")
    return shown(f"runner=data_prep {DATA} data.max_bad_rows=0")


def empty_tokenizer() -> str:
    Path("tokenizer").mkdir()
    return shown(f"runner=data_prep {DATA} tokenizer.path=tokenizer")


def model_folder(tensors: dict[str, torch.Tensor] | None, **files: str) -> None:
    Path("model").mkdir()
    for name, text in files.items():
        Path("model", name.replace("__", ".")).write_text(text)
    if tensors is not None:
        save_file(tensors, "model/model.safetensors")


def no_config() -> str:
    model_folder(None)
    return shown(f"{TRAIN} model=hf model.path=model tokenizer.path=demo")


def megatron() -> str:
    model_folder(None, latest_checkpointed_iteration__txt="100")
    return shown(f"{TRAIN} model=hf model.path=model tokenizer.path=demo")


TINY = json.dumps(
    {
        **{"model_type": "qwen3", "vocab_size": 1024, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
        **{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "hidden_act": "silu"},
    }
)


def pickles() -> str:
    model_folder(None, config__json=TINY, pytorch_model__bin="")
    return shown(f"{TRAIN} model=qwen3_0_6b model.path=model tokenizer.path=demo")


def stray_weight() -> str:
    model_folder({"model.extra.weight": torch.zeros(2)}, config__json=TINY)
    return shown(f"{TRAIN} model=qwen3_0_6b model.path=model tokenizer.path=demo")


def leaking() -> str:
    from transformers import AutoModelForCausalLM, Lfm2Config

    sizes = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}
    AutoModelForCausalLM.from_config(Lfm2Config(**sizes, **heads)).save_pretrained("model")
    return shown(f"{TRAIN} model=hf model.path=model tokenizer.path=demo")


def split_generic() -> str:
    model_folder(None, config__json=json.dumps({"model_type": "olmo2", "num_attention_heads": 2}))
    return shown(f"{TRAIN} model=hf model.path=model tokenizer.path=demo parallel.tp=2 cluster.gpus_per_node=2")


def no_checkpoint() -> str:
    Path("earlier").mkdir()
    return shown(f"{TRAIN} checkpoint.load=earlier")


def roles(*names: str) -> dict[str, Any]:
    return {"messages": [{"role": name, "content": "text"} for name in names]}


PROVOKED: dict[str, Callable[[], str]] = {
    "unknown key; did you mean": lambda: shown("optimizer.lrr=1"),
    "it is called model.path here": lambda: shown("hf_model_path=here"),
    "no such option; did you mean": lambda: shown("model=nano4"),
    "is a sweep: add -m": lambda: shown("optimizer.lr=1e-4,2e-4"),
    "not found; did you mean": lambda: shown("data=jsonl data.path=chat.jsonl"),
    "does not divide the world of": lambda: shown("cluster.gpus_per_node=8 parallel.tp=3"),
    "is not a multiple of the data-parallel size": lambda: shown(
        "cluster.gpus_per_node=8 train.global_batch_size=3 parallel=single"
    ),
    "holds a run that this command cannot resume": trained_before,
    "this folder is in use by another training": twice_at_once,
    "it belongs to the run in": checkpoints_of_another,
    "changed during data preparation": rewritten_input,
    "restore the original": other_rows,
    "not a floating-point weight": lambda: odd_weights(1.0, torch.int8),
    "has non-finite values": lambda: odd_weights(float("nan"), torch.float32),
    "contains no checkpoint": lambda: shown("runner=generate name=typo 'generate.prompts=[hi]'"),
    "exists and was not written by an export": export_over_chats,
    "has no effect with runner=train": lambda: shown("'generate.prompts=[hi]'"),
    "looks like a secret": lambda: shown("cluster=slurm +cluster.env.HF_TOKEN=abc"),
    "finds no such device on this machine": lambda: shown(f"{TRAIN} device=mps"),
    "missing_packed_data": lambda: shown(f"{TRAIN} data.prepare=never"),
    "tokenizer_mismatch": other_tokenizer,
    "seq_length_mismatch": other_length,
    "tools_missing": lambda: rejected({"messages": [CHAT[0], {"role": "assistant", "content": "<tool_call>x"}]}),
    "call of undefined tool": lambda: rejected({"messages": [CHAT[0], CALL], "tools": [TOOL]}),
    "the conversation has no assistant message": lambda: rejected({"messages": CHAT[:1]}),
    "nothing_to_learn": lambda: rejected({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}),
    "conflicts with data.sources": lambda: shown("data.path=chats.jsonl"),
    "unsupported file format; use .jsonl, .json or .parquet": spreadsheet,
    "For other column names set": other_columns,
    "rows were rejected": nothing_left,
    "cannot render a question and its answer": lambda: shown(
        f"runner=data_prep {DATA} 'tokenizer.chat_template=\"{{{{ raise_exception(1) }}}}\"'"
    ),
    "has no default chat template": base_tokenizer,
    "overlong": lambda: rejected({"messages": [{"role": "user", "content": "word " * 200}, CHAT[1]]}),
    "sequences truncated": cut_off,
    "unknown roles": lambda: rejected(roles("user", "assistant", "judge")),
    "malformed": lambda: rejected("{\n"),
    "data.max_bad_rows=": too_many_bad,
    "no tokenizer.json in": empty_tokenizer,
    "nor available on the hub": lambda: shown(f"runner=data_prep {DATA} tokenizer.path=nobody/nothing"),
    "it is not a Hugging Face model folder": no_config,
    "checkpoint_format": megatron,
    "only safetensors are supported": pickles,
    "is not part of this model": stray_weight,
    "leaks across packed conversations": leaking,
    "trains through the transformers implementation": split_generic,
    "is not a complete checkpoint and holds none": no_checkpoint,
    "oom": lambda: shown(
        f"{TRAIN} model.architecture.intermediate_size={10**8} model.architecture.hidden_size={10**6}"
    ),  # no machine has room for it
    "is not finite in packed sequences": lambda: shown(
        f"{TRAIN} optimizer=adamw optimizer.lr=1000 optimizer.weight_decay=100 train.clip_grad=null train.train_iters=30"
    ),
}


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a file of chats, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_chats(*[{"messages": CHAT}] * 8)
    return tmp_path


def first_cells(page: str) -> Iterator[str]:
    for line in page.splitlines():
        if cell := re.match(r"\| `([^`]+)` \|", line):
            yield cell[1]


def test_each_row_of_the_page_is_provoked(pages: dict[str, str]) -> None:
    assert sorted(first_cells(pages["docs/troubleshooting.md"])) == sorted(PROVOKED)


@pytest.mark.parametrize("text", PROVOKED)
@pytest.mark.usefixtures("newcomer")
def test_the_user_reads_this(text: str) -> None:
    assert text in PROVOKED[text]().replace("\n", " ")
