"""Runs where megatron-core is installed, not in the environment of the tests: writes and reads its checkpoints on a CPU.

    python megatron_core.py write|read FAMILY TP FOLDER RESULT

`write` saves a model with random weights, `read` loads the folder into one. RESULT then holds what megatron-core itself makes
of it: logits of the ids 1..20, or for the hybrid, whose kernels need a GPU, the tensors of its state.
"""

import os
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

VOCAB = 128
DENSE = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 16}
FAMILIES: dict[str, dict[str, object]] = {
    "qwen3": {},
    "qwen3_untied": {},
    "llama": {},
    "qwen3_moe": {},
    "nemotron_h": {},
}


def on_a_cpu() -> None:
    """What megatron-core asks of CUDA where it needs none."""
    torch.cuda.synchronize = lambda *_, **__: None  # type: ignore[assignment]
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]


def stub_kernels() -> None:
    """The mixer only imports them while a model is built."""
    for name in (
        "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.layernorm_gated",
        "mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.selective_state_update", "causal_conv1d",
    ):  # fmt: skip
        sys.modules[name] = types.ModuleType(name)

    class RMSNorm(torch.nn.Module):
        def __init__(self, size: int, **_: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(size))

    sys.modules["mamba_ssm.ops.triton.layernorm_gated"].RMSNorm = RMSNorm  # type: ignore[attr-defined]
    combined = sys.modules["mamba_ssm.ops.triton.ssd_combined"]
    combined.mamba_chunk_scan_combined = combined.mamba_split_conv1d_scan_combined = None  # type: ignore[attr-defined]
    sys.modules["mamba_ssm.ops.triton.selective_state_update"].selective_state_update = None  # type: ignore[attr-defined]
    sys.modules["causal_conv1d"].causal_conv1d_fn = sys.modules["causal_conv1d"].causal_conv1d_update = None  # type: ignore[attr-defined]


def gpt(family: str, tp: int) -> Any:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    moe: dict[str, Any] = {}
    if family == "qwen3_moe":
        moe = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24}
        moe |= {"moe_router_pre_softmax": False, "moe_token_dispatcher_type": "allgather"}
    config = TransformerConfig(
        **DENSE, **moe, ffn_hidden_size=48, use_cpu_initialization=True, tensor_model_parallel_size=tp, gated_linear_unit=True,
        activation_func=torch.nn.functional.silu, add_bias_linear=False, normalization="RMSNorm", layernorm_epsilon=1e-6,
        hidden_dropout=0.0, attention_dropout=0.0, bias_dropout_fusion=False, gradient_accumulation_fusion=False,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(
        num_experts=4 if moe else None, moe_grouped_gemm=False, qk_layernorm=family != "llama", normalization="RMSNorm"
    )
    return GPTModel(
        config, spec, vocab_size=VOCAB, max_sequence_length=64, position_embedding_type="rope", rotary_base=10000,
        share_embeddings_and_output_weights=family == "qwen3",
    )  # fmt: skip


def hybrid(tp: int) -> Any:
    stub_kernels()
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.models.mamba import MambaModel
    from megatron.core.ssm import mamba_block, mamba_layer, mamba_mixer, mlp_layer
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import (
        ModuleSpec,
        TransformerConfig,
        TransformerLayer,
        attention,
        dot_product_attention,
        enums,
        transformer_layer,
    )
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    mamba_block.TENorm = WrappedTorchNorm
    mamba = ModuleSpec(
        mamba_layer.MambaLayer,
        submodules=mamba_layer.MambaLayerSubmodules(
            norm=WrappedTorchNorm,
            mixer=ModuleSpec(
                mamba_mixer.MambaMixer,
                submodules=mamba_mixer.MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear),
            ),
            mamba_bda=get_bias_dropout_add,
        ),
    )
    attend = ModuleSpec(
        TransformerLayer,
        submodules=transformer_layer.TransformerLayerSubmodules(
            input_layernorm=WrappedTorchNorm,
            self_attention=ModuleSpec(
                attention.SelfAttention,
                params={"attn_mask_type": enums.AttnMaskType.causal},
                submodules=attention.SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear, core_attention=dot_product_attention.DotProductAttention,
                    linear_proj=RowParallelLinear,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
        ),
    )  # fmt: skip
    dense = ModuleSpec(
        mlp_layer.MLPLayer,
        submodules=transformer_layer.TransformerLayerSubmodules(
            pre_mlp_layernorm=WrappedTorchNorm,
            mlp=ModuleSpec(
                MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    experts = ModuleSpec(
        TransformerLayer,
        submodules=transformer_layer.TransformerLayerSubmodules(
            pre_mlp_layernorm=WrappedTorchNorm,
            mlp=get_moe_module_spec(use_te=False, num_experts=4, moe_grouped_gemm=False),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    stack = ModuleSpec(
        mamba_block.MambaStack,
        submodules=mamba_block.MambaStackSubmodules(
            mamba_layer=mamba, attention_layer=attend, mlp_layer=dense, moe_layer=experts
        ),
    )
    config = TransformerConfig(
        **(DENSE | {"num_layers": 4}), ffn_hidden_size=48, use_cpu_initialization=True, tensor_model_parallel_size=tp,
        activation_func=torch.nn.functional.relu, add_bias_linear=False, normalization="RMSNorm",
        bias_dropout_fusion=False, gradient_accumulation_fusion=False, num_moe_experts=4, moe_ffn_hidden_size=24,
        moe_shared_expert_intermediate_size=40, moe_router_enable_expert_bias=True, moe_router_score_function="sigmoid",
        moe_router_topk=2, moe_token_dispatcher_type="allgather", is_hybrid_model=True,
        mamba_num_heads=8, mamba_head_dim=8, mamba_num_groups=2, mamba_state_dim=8,
    )  # fmt: skip
    return MambaModel(
        config, stack, VOCAB, 64, hybrid_override_pattern="M*E-", position_embedding_type="none",
        share_embeddings_and_output_weights=False,
    )  # fmt: skip


def run(rank: int, what: str, family: str, tp: int, folder: str, result: str) -> None:
    on_a_cpu()
    if tp > 1:
        dist.init_process_group("gloo", rank=rank, world_size=tp, init_method=f"file://{result}.rendezvous")
    else:
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
    from megatron.core.transformer.moe import moe_utils

    moe_utils.te_general_gemm = None  # 0.16.1 does not define it where Transformer Engine is not installed
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
    type(get_cuda_rng_tracker()).fork = lambda *_: nullcontext()  # its random states are a GPU's
    torch.manual_seed(7)
    model = hybrid(tp) if family == "nemotron_h" else gpt(family, tp)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer.copy_(torch.arange(4.0))
    state = model.sharded_state_dict(prefix="")
    if what == "write":
        Path(folder).mkdir(parents=True, exist_ok=True)
        dist.barrier()
        dist_checkpointing.save({**state, "iteration": 7, "checkpoint_version": 3.0}, folder)
    else:
        state = {key: value for key, value in state.items() if not key.endswith("_extra_state")}
        loaded = dist_checkpointing.load(state, folder)
        if rank == 0:
            print("iteration", loaded.pop("iteration"))
        loaded.pop("iteration", None)
        model.load_state_dict({k: v for k, v in loaded.items() if k in model.state_dict()}, strict=False)
    if family == "nemotron_h":
        outcome: Any = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    else:
        ids = torch.arange(1, 21)[None]
        mask = torch.ones(1, 1, 20, 20).triu(1).bool()
        with torch.no_grad():
            outcome = model.eval()(ids, torch.arange(20)[None], mask).float()
        if tp > 1:
            parts = [torch.empty_like(outcome) for _ in range(tp)]
            dist.all_gather(parts, outcome.contiguous())
            outcome = torch.cat(parts, -1)
    if rank == 0:
        torch.save(outcome, result)
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads can abort an interpreter that shuts down with a group


if __name__ == "__main__":
    what, family, tp, folder, result = sys.argv[1:]
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if int(tp) == 1:
        run(0, what, family, 1, folder, result)
    else:
        mp.spawn(run, (what, family, int(tp), folder, result), nprocs=int(tp))
