"""torch.compile of blocks, each by itself, under every kind of recompute.

Methods that a layer declares `opaque` (attention, scan, dispatch to experts) run outside of the graphs, so a block is a few
graphs between them. The number of tokens is marked as varying from the first call, so that there is no graph for the first
batch alone: torch runs a function uncompiled beyond a number of graphs (`recompile_limit`, 8).

Selective recompute inside of a graph is the partitioner's: it keeps matrix products and computes the rest again in the
backward pass. torch's selective checkpointing cannot be put around compiled code, which is then not compiled at all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config
from torch import nn

from sft_hydra.parallel.activation_checkpointing import checkpointed
from sft_hydra.parallel.sharded_module import ShardedModule

BACKEND = "inductor"


def compile_block(block: nn.Module, recompute: str) -> None:
    """Compile a block's forward; its hooks, such as those of FSDP, stay outside. `recompute`: none, selective, full."""
    for module in block.modules():
        if isinstance(module, ShardedModule):
            for name in module.opaque:
                method = getattr(module, name)
                if recompute == "selective":
                    method = checkpointed(method, recompute)
                setattr(module, name, torch.compiler.disable(partial(_of_any_length, method)))
    backend: Any = _keeping_products if recompute == "selective" else BACKEND
    forward = partial(_call_with_any_length, torch.compile(block.forward, backend=backend), block.forward)
    block.forward = checkpointed(forward, recompute) if recompute == "full" else forward  # type: ignore[method-assign]


def _call_with_any_length(
    forward: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], hidden: torch.Tensor, packed: Any
) -> torch.Tensor:
    """A compiled block's output for `hidden` (T, D) and the `Packed` of these tokens (models/layers.py). Texts that are
    continued from a cache go through the `plain` block: their graphs would use up the limit before training begins."""
    if packed.cache is not None:
        return plain(hidden, packed)
    for tensor in (hidden, packed.seq_idx, *(packed.rotary or ())):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return forward(hidden, packed)


def _of_any_length(method: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """What an opaque method returns, for the graph after it."""
    out = method(*arguments)
    torch._dynamo.maybe_mark_dynamic(out, 0)
    return out


def _keeping_products(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a graph that keeps no result for the backward pass which is cheap to compute again. (By default it keeps many
    that would be used far apart or in long chains.)"""
    with torch._functorch.config.patch(aggressive_recomputation=True):
        return torch._dynamo.lookup_backend(BACKEND)(graph, inputs)  # type: ignore[no-any-return]
