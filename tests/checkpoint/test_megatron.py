"""Megatron checkpoints: written and read here, by torch's own distributed checkpoints, and (slow) by megatron-core itself."""

import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file, save_file
from support.configs import make_cfg
from support.packed import ARCHITECTURES, make_model
from torch.distributed.checkpoint.metadata import Metadata

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.checkpoint.export_megatron import export_megatron
from sft_hydra.checkpoint.hf_export import export
from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.checkpoint.megatron import MegatronWeights, write_megatron
from sft_hydra.checkpoint.torch_dist import TorchDist
from sft_hydra.errors import ModelError
from sft_hydra.models.build import build_model
from sft_hydra.models.megatron_names import mtp_names
from sft_hydra.models.state_dict_map import to_disk
from sft_hydra.runners.write_export import export_settings
from sft_hydra.schema.model import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SCRIPT = Path(__file__).parent.parent / "support" / "megatron_core.py"
MCORE = "SFT_HYDRA_MEGATRON_PYTHON"
MOE = ARCHITECTURES["qwen3_moe"] | {"mlp_only_layers": []}
WRITTEN = {
    **{name: ARCHITECTURES[name] for name in ("qwen3", "qwen3_biased", "qwen2", "llama", "qwen3_moe", "nano", "super")},
    "qwen3_moe_alike": MOE,
}


def changed(model: Any) -> Any:
    """With values in what starts as zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict().items()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def written(model: Any, folder: Path, step: int = 5) -> Path:
    write_megatron(model.config, to_disk(model.config, model.state_dict()), folder / f"iter_{step:07d}", step)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def loaded(architecture: dict[str, Any], folder: Path | str) -> dict[str, torch.Tensor]:
    model = build_model(architecture, "cpu", torch.float32)
    load_weights(model, str(folder))
    return dict(model.state_dict())


@pytest.mark.parametrize("family", WRITTEN)
def test_what_is_written_is_read(tmp_path: Path, family: str) -> None:
    model = changed(make_model(WRITTEN[family]))
    folder = written(model, tmp_path)
    for place in (folder, folder / "iter_0000005"):
        found = loaded(WRITTEN[family], place)
        assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def by_torch(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder as torch's own reader gives them."""
    reader = dcp.FileSystemReader(folder)
    state = {key: torch.empty(entry.size) for key, entry in reader.read_metadata().state_dict_metadata.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def test_torch_reads_it_stacked_and_joined(tmp_path: Path) -> None:
    """In the order of Megatron's tensors, put together here by hand."""
    model = changed(make_model(MOE))
    state = dict(to_disk(model.config, model.state_dict()))
    found = by_torch(written(model, tmp_path) / "iter_0000005")
    joined = []
    for layer in range(3):
        q, k, v = (state[f"model.layers.{layer}.self_attn.{kind}_proj.weight"].view(2, -1, 32) for kind in "qkv")
        joined.append(torch.cat([q, k, v], 1).reshape(-1, 32))
        experts = [
            torch.cat([state[f"model.layers.{layer}.mlp.experts.{e}.{kind}_proj.weight"] for kind in ("gate", "up")])
            for e in range(6)
        ]
        assert torch.equal(found["decoder.layers.mlp.experts.experts.linear_fc1.weight"][layer], torch.stack(experts))
    assert torch.equal(found["decoder.layers.self_attention.linear_qkv.weight"], torch.stack(joined))
    assert torch.equal(found["output_layer.weight"], state["lm_head.weight"])


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    """Names of a model without Transformer Engine, layers by name, a padded vocabulary, optimizer state and extra states."""
    model = changed(make_model(ARCHITECTURES["nano"]))
    state = by_torch(written(model, tmp_path / "ours") / "iter_0000005")
    for old in [key for key in state if key.endswith("in_proj.layer_norm_weight")]:
        state[old.replace("mixer.in_proj.layer_norm_weight", "norm.weight")] = state.pop(old)
    state["embedding.word_embeddings.weight"] = torch.cat(
        [state["embedding.word_embeddings.weight"], torch.zeros(31, 32)]
    )
    others = {"optimizer.state.exp_avg.decoder.final_norm.weight": torch.zeros(32)}
    others["decoder.layers.0.mixer.in_proj._extra_state"] = torch.zeros(1)
    dcp.save({**state, **others}, checkpoint_id=tmp_path / "theirs", no_dist=True)
    (tmp_path / "theirs" / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    found = loaded(ARCHITECTURES["nano"], tmp_path / "theirs")
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def change(folder: Path, **changes: torch.Tensor | None) -> str:
    state = by_torch(folder) | changes
    new = folder.parent / "changed"
    dcp.save({key: tensor for key, tensor in state.items() if tensor is not None}, checkpoint_id=new, no_dist=True)
    (new / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return str(new)


FOREIGN = {
    "two places": ({"decoder.layers.0.norm.weight": torch.ones(32)}, "is stored under several keys"),
    "another head": ({"mtp.layers.0.eh_proj.weight": torch.ones(2, 2)}, "mtp.layers.0.eh_proj.weight is not part of"),
    "less": ({"decoder.final_norm.weight": None}, "backbone.norm_f.weight is missing"),
    "another size": (
        {"decoder.layers.2.self_attention.linear_qkv.weight": torch.ones(8, 32)},
        "by the model's config",
    ),
}


@pytest.mark.parametrize(("changes", "problem"), FOREIGN.values(), ids=FOREIGN)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    folder = written(make_model(ARCHITECTURES["nano"]), tmp_path) / "iter_0000005"
    with pytest.raises(ModelError, match=problem):
        loaded(ARCHITECTURES["nano"], change(folder, **changes))


def test_bridges_files_stand_around_it(tmp_path: Path) -> None:
    """The keys that Megatron-Bridge's `read_train_state` and `load_checkpoint` look up, and the model's config.json."""
    model = changed(make_model(ARCHITECTURES["qwen3"]))
    tokenizer = load_tokenizer(make_cfg())
    export_megatron(model, ModelConfig(), None, tokenizer, tmp_path / "out", 9)
    checkpoint = tmp_path / "out" / "iter_0000009"
    for file in (checkpoint / "train_state.pt", tmp_path / "out" / "latest_train_state.pt"):
        state = torch.load(file, weights_only=True)
        assert {name: value.item() for name, value in state.items()} == {
            "step": 9, "consumed_train_samples": 0, "skipped_train_samples": 0, "consumed_valid_samples": 0,
            "floating_point_operations_so_far": 0.0, "do_train": False, "do_valid": False, "do_test": False,
        }  # fmt: skip
    assert yaml.safe_load((checkpoint / "run_config.yaml").read_text()) == {
        "model": {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1},
        "checkpoint": {"save_optim": False, "save_rng": False, "fully_parallel_save": False},
    }
    found = loaded(json.loads((checkpoint / "config.json").read_text()), tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_multi_token_prediction_goes_through_both_formats(tmp_path: Path) -> None:
    """By the names of Megatron-Bridge's NemotronHBridge: blocks numbered through in Hugging Face's files are nested there."""
    prediction = {"num_nextn_predict_layers": 2, "mtp_hybrid_override_pattern": "*E"}
    model = changed(make_model(ARCHITECTURES["nano"] | prediction))
    source, generator = tmp_path / "source", torch.Generator().manual_seed(5)
    export(model, export_settings(make_cfg()), load_tokenizer(make_cfg()), source)
    of_layer = {"*": "backbone.layers.2.", "E": "backbone.layers.1."}
    own = {"eh_proj.weight": (32, 64)} | dict.fromkeys(
        ("enorm.weight", "hnorm.weight", "final_layernorm.weight"), (32,)
    )
    plain = load_file(source / "model.safetensors")
    heads = {}
    for name in mtp_names(model.config):
        layer, rest = name.removeprefix("mtp.layers.").split(".", 1)
        like = plain.get(of_layer["*E"[int(layer) % 2]] + rest)
        if (shape := own.get(rest) or (None if like is None else tuple(like.shape))) is not None:
            heads[name] = torch.randn(shape, generator=generator)
    assert len(heads) == 2 * (8 + 1 + 12 + 2 + 2 + 1)
    save_file(plain | heads, source / "model.safetensors", metadata={"format": "pt"})

    export_megatron(model, ModelConfig(path=str(source)), None, load_tokenizer(make_cfg()), tmp_path / "out", 9)
    found = by_torch(tmp_path / "out" / "iter_0000009")
    block = "mtp.layers.1.mtp_model_layer.layers."
    assert torch.equal(found["mtp.layers.1.eh_proj.weight"], heads["mtp.layers.2.eh_proj.weight"])
    assert torch.equal(found["mtp.layers.1.final_layernorm.weight"], heads["mtp.layers.3.final_layernorm.weight"])
    experts = torch.stack([heads[f"mtp.layers.3.mixer.experts.{number}.up_proj.weight"] for number in range(6)])
    assert torch.equal(found[f"{block}1.mlp.experts.experts.linear_fc1.weight"], experts)
    q, k, v = (heads[f"mtp.layers.2.mixer.{kind}_proj.weight"].view(2, -1, 32) for kind in "qkv")
    assert torch.equal(found[f"{block}0.self_attention.linear_qkv.weight"], torch.cat([q, k, v], 1).reshape(-1, 32))

    again = build_model(ARCHITECTURES["nano"] | prediction, "cpu", torch.float32)
    load_weights(again, str(tmp_path / "out"))
    cfg = make_cfg()
    cfg.model.path = str(tmp_path / "out")
    export(again, export_settings(cfg), load_tokenizer(make_cfg()), tmp_path / "hf")
    back = load_file(tmp_path / "hf" / "model.safetensors")
    assert back.keys() == (plain | heads).keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in (plain | heads).items())


class Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def test_metadata_runs_nothing(tmp_path: Path) -> None:
    folder = written(make_model(ARCHITECTURES["qwen3"]), tmp_path) / "iter_0000005"
    touched = tmp_path / "touched"
    attacks = [Runs(os.system, f"touch {touched}"), Runs(eval, f"open({str(touched)!r}, 'w')"), Runs(torch.load, "x")]
    attacks.append(Runs(torch.hub.load_state_dict_from_url, "http://localhost"))
    for attack in attacks:
        metadata = Metadata({}, planner_data=attack, storage_data={})
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(ModelError, match="not on the list of allowed names"):
            TorchDist(folder)
    assert not touched.exists()


def test_chunks_that_are_not_what_the_metadata_says(tmp_path: Path) -> None:
    folder = written(make_model(ARCHITECTURES["qwen3"]), tmp_path) / "iter_0000005"
    file = folder / "__0_0.distcp"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        loaded(ARCHITECTURES["qwen3"], tmp_path)
    (tmp_path / "x").write_bytes(content)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../x"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ModelError, match=r"not a \.distcp file beside"):
        loaded(ARCHITECTURES["qwen3"], tmp_path)


THEIRS: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 64,
}  # fmt: skip
OF_MCORE = {
    "qwen3": THEIRS | {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_untied": THEIRS | {"model_type": "qwen3", "tie_word_embeddings": False},
    "llama": THEIRS | {"model_type": "llama", "tie_word_embeddings": False},
    "qwen3_moe": THEIRS
    | {
        "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": True, "tie_word_embeddings": False,
    },
    "nemotron_h": THEIRS
    | {
        "model_type": "nemotron_h", "num_hidden_layers": 4, "hybrid_override_pattern": "M*E-", "mamba_num_heads": 8,
        "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "conv_kernel": 4, "chunk_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 40,
    },
}  # fmt: skip


@pytest.fixture
def megatron_core(tmp_path: Path) -> Any:
    """`megatron_core("write", family, tp, folder)`: what megatron-core makes of it."""
    python = os.environ.get(MCORE)
    if not python:
        pytest.skip(f"needs {MCORE}=<a Python that has megatron-core>")

    def call(what: str, family: str, tp: int, folder: Path) -> Any:
        result = tmp_path / f"{what}.pt"
        command = [python, str(SCRIPT), what, family, str(tp), str(folder), str(result)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        if what == "read":
            assert "iteration 9" in done.stdout
        return torch.load(result, weights_only=True)

    return call


def our_logits(model: Any) -> torch.Tensor:
    from support.packed import logits_of, make_row

    from sft_hydra.engine.batch import make_batch

    row = make_row([20], vocab=128)
    row.input_ids[:] = range(1, 21)
    return logits_of(model, make_batch([row], "cpu"))


def furthest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit: the two sum in other orders, more so with tensor parallelism."""
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tp"), [("qwen3", 1), ("qwen3_untied", 2), ("llama", 1), ("qwen3_moe", 2)])
def test_megatron_cores_logits_are_ours(tmp_path: Path, megatron_core: Any, family: str, tp: int) -> None:
    """Of a checkpoint that it wrote, and of one of ours that it read."""
    theirs = megatron_core("write", family, tp, tmp_path / "theirs")
    model = build_model(OF_MCORE[family], "cpu", torch.float32)
    load_weights(model, str(tmp_path / "theirs"))
    assert furthest(our_logits(model), theirs[0]) < 2e-5
    changed(model)
    folder = written(model, tmp_path / "ours", step=9) / "iter_0000009"
    if family == "qwen3_moe":  # this spec of megatron-core has no Transformer Engine, whose name for this norm we write
        before = {key: tensor for key, tensor in by_torch(folder).items() if "pre_mlp" not in key}
        norm = by_torch(folder)["decoder.layers.pre_mlp_layernorm.weight"]
        common = (folder / "common.pt").read_bytes()
        folder = Path(change(folder, **before, **{
            "decoder.layers.pre_mlp_layernorm.weight": None, "decoder.layers.mlp.linear_fc1.layer_norm_weight": norm,
        }))  # fmt: skip
        (folder / "common.pt").write_bytes(common)
        (folder / "metadata.json").write_text((tmp_path / "ours" / "iter_0000009" / "metadata.json").read_text())
    again = megatron_core("read", family, tp, folder)
    assert furthest(our_logits(model), again[0]) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 2])
def test_megatron_cores_hybrid_tensors_are_ours(tmp_path: Path, megatron_core: Any, tp: int) -> None:
    """Mamba's joined tensors have Hugging Face's order in megatron-core's own state at tp=1."""
    folder = tmp_path / "theirs"
    whole = megatron_core("write", "nemotron_h", tp, folder)
    model = build_model(OF_MCORE["nemotron_h"], "cpu", torch.float32)
    load_weights(model, str(folder))
    ours = dict(to_disk(model.config, model.state_dict()))
    weights = MegatronWeights(folder, model.config)
    assert all(torch.equal(weights.get(name)[:], tensor) for name, tensor in ours.items())
    if tp == 1:
        mixer = "decoder.layers.0.mixer."
        for name in (
            "in_proj.weight",
            "conv1d.weight",
            "conv1d.bias",
            "A_log",
            "D",
            "dt_bias",
            "norm.weight",
            "out_proj.weight",
        ):
            assert torch.equal(ours[f"backbone.layers.0.mixer.{name}"], whole[mixer + name]), name
        assert torch.equal(ours["backbone.layers.2.mixer.gate.e_score_correction_bias"], torch.arange(4.0))
        assert torch.equal(
            ours["backbone.layers.2.mixer.experts.3.up_proj.weight"],
            whole["decoder.layers.2.mlp.experts.local_experts.3.linear_fc1.weight"],
        )
        assert torch.equal(ours["backbone.layers.3.norm.weight"], whole["decoder.layers.3.pre_mlp_layernorm.weight"])
