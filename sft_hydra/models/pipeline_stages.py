"""Pipeline stages of a model, and passes of micro-batches through them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from sft_hydra.models.decoder import FamilyModel
from sft_hydra.models.embedding_noise import EmbeddingNoise
from sft_hydra.models.moe import MoE, SigmoidRouter, SoftmaxRouter
from sft_hydra.models.quantized_linear import QuantizedGroupedLinear, QuantizedLinear
from sft_hydra.parallel.dtensor import local_shard
from sft_hydra.parallel.pipeline import make_schedule, stages_of_rank
from sft_hydra.planning.stage_split import partition_layers


class MicroBatch(Protocol):
    """The tensors of a micro-batch, see DecoderModel.forward. All micro-batches have the same number of tokens."""

    @property
    def input_ids(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def cu_seqlens(self) -> torch.Tensor: ...
    @property
    def max_seqlen(self) -> int: ...
    @property
    def targets(self) -> torch.Tensor: ...
    @property
    def trained(self) -> torch.Tensor: ...
    @property
    def noise(self) -> EmbeddingNoise | None: ...


@dataclass(slots=True)
class Pass:
    """One pass of micro-batches through the pipeline."""

    batches: Sequence[MicroBatch]
    targets: bool = True  # compute losses; False: hidden states after the final norm
    count: int = 1  # gradients are those of the summed loss / count
    results: dict[int, Any] = field(default_factory=dict)  # on the last stage: the model's output for each of `batches`


class Stage(nn.Module):
    """Consecutive blocks of a model, shared with it; the first stage also has the embedding, the last norm and lm_head."""

    def __init__(self, model: FamilyModel, layers: Sequence[str], *, first: bool, last: bool) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.blocks = nn.ModuleList(model.model.layers[layer] for layer in layers)
        self.embed_tokens = model.model.embed_tokens if first or (last and model.lm_head is None) else None
        self.norm = model.model.norm if last else None
        self.lm_head = model.lm_head if last else None
        self.embed, self.packed, self.finish = model.embed, model.packed, model.finish
        self.model = (model,)  # in a tuple, so that it is not registered as a sub-module
        self.now: Pass
        self.seen: set[int] = set()  # micro-batches that have been here in this pass

    def forward(self, hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Hidden states (t, D), or the loss (1,) on the last stage. `hidden` (t, D) is the previous stage's output (unused
        on the first stage); `index` (1,) is the micro-batch index."""
        number = int(index)
        batch = self.now.batches[min(number, len(self.now.batches) - 1)]  # extra passes repeat the last micro-batch
        self._observe(number, batch)
        packed = self.packed(batch.position_ids, batch.cu_seqlens, batch.max_seqlen)
        if self.first:
            self.model[0].noise = batch.noise
            hidden = self.embed(batch.input_ids)
            if torch.is_grad_enabled() and not any(parameter.requires_grad for parameter in self.parameters()):
                hidden.requires_grad_()  # the schedule asks every stage for a backward pass
        for block in self.blocks:
            hidden = block(hidden, packed)
        return self._result(number, hidden, batch) if self.last else hidden

    def _observe(self, number: int, batch: MicroBatch) -> None:
        """Have this stage's routers count the tokens of a micro-batch once. torch's schedule runs the first one twice, to learn
        the shapes of outputs, and repeats the last one where the number of micro-batches does not fit."""
        if number in self.seen:
            for module in self.modules():
                if isinstance(module, SoftmaxRouter | SigmoidRouter) and module.balance is not None:
                    module.balance.reset()
        self.seen = {number} if number in self.seen else self.seen | {number}
        self.model[0].observe_batch(batch, repeated=number >= len(self.now.batches))

    def _result(self, number: int, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Store the output for a micro-batch; returns its part of the loss (1,)."""
        if not self.now.targets:
            self.now.results[number] = self.finish(hidden, None)
            return hidden.new_zeros(1)
        loss_sum, token_losses = self.finish(hidden, batch.targets, batch.trained)
        self.now.results[number] = (loss_sum.detach(), token_losses)
        factor = 1 / self.now.count if number < len(self.now.batches) else 0.0
        return loss_sum[None] * factor


class Pipeline:
    """This rank's stages of a model, and the schedules that run them. `per_rank`: stages on each rank."""

    def __init__(self, model: FamilyModel, per_rank: int) -> None:
        self.model = model
        self.tied = model.lm_head is None
        self.stages = split_into_stages(model, per_rank)
        self._schedules: dict[int, Any] = {}  # by number of micro-batches

    def forward_backward(self, batches: Sequence[MicroBatch], count: int) -> dict[int, Any]:
        """Accumulate the gradient of (sum of losses / count). Returns, on ranks of the last stage, for each micro-batch the
        summed loss and the per-token losses (t,); empty on other ranks."""
        now = self._run(Pass(batches, count=count), backward=True)
        self._sum_tied_gradient()
        return now.results

    def forward(self, batches: Sequence[MicroBatch], *, targets: bool = True) -> dict[int, Any]:
        """On ranks of the last stage: for each micro-batch the losses, or hidden states (t, D) after the final norm."""
        return self._run(Pass(batches, targets), backward=False).results

    def relay(self, batch: MicroBatch) -> Any | None:
        """One micro-batch of any number of tokens through all stages, without a schedule: on ranks of the last stage what the
        model returns without targets, on others None."""
        mesh = self.model.mesh
        group, total = mesh.pp.handle, mesh.pp.size * len(self.stages)
        assert group is not None
        before, after = (dist.get_global_rank(group, (mesh.pp.rank + step) % mesh.pp.size) for step in (-1, 1))
        width, dtype = self.model.config.hidden_size, self.model.rounds_to or next(self.model.parameters()).dtype
        hidden = torch.empty(len(batch.input_ids), width, dtype=dtype, device=self.model.device)
        results: dict[int, Any] = {}
        for number, stage in zip(stages_of_rank(mesh, len(self.stages)), self.stages, strict=True):
            if number:
                dist.recv(hidden, before, group)
            stage.now = Pass([batch], targets=False)
            out = stage(hidden, torch.zeros(1, dtype=torch.int64))
            if number < total - 1:
                dist.send(out.contiguous(), after, group)
            results |= stage.now.results
        return results.get(0)

    def _run(self, now: Pass, *, backward: bool) -> Pass:
        size, device = self.model.mesh.pp.size, self.model.device
        number = -(-len(now.batches) // size) * size  # the interleaved schedule needs a multiple of the stages
        if number not in self._schedules:
            self._schedules[number] = make_schedule(self.stages, self.model.mesh, device, number)
        schedule = self._schedules[number]
        for stage in self.stages:
            stage.now, stage.seen = now, set()
        index = torch.arange(number)  # on the CPU: reading it does not synchronize with the device
        inputs = (torch.zeros(number, device=device),) if self.stages[0].first else ()
        last: dict[str, Any] = {"target": index, "losses": []} if self.stages[-1].last else {}
        (schedule.step if backward else schedule.eval)(*inputs, index=index, **last)
        return now

    def _sum_tied_gradient(self) -> None:
        """With a tied head, the first and last stage each have a copy of the embedding: give both the summed gradient."""
        pp = self.model.mesh.pp
        ends = {0: pp.size - 1, pp.size - 1: 0}
        if not self.tied or pp.rank not in ends:
            return
        assert pp.handle is not None
        other = dist.get_global_rank(pp.handle, ends[pp.rank])
        for weight in self.model.model.embed_tokens.parameters():  # with the trained rows of new tokens
            if weight.grad is None:  # frozen
                continue
            local, _ = local_shard(weight.grad)
            received = torch.empty_like(local)
            swap = [dist.P2POp(dist.isend, local, other, pp.handle), dist.P2POp(dist.irecv, received, other, pp.handle)]
            for work in dist.batch_isend_irecv(swap):
                work.wait()
            local += received


def split_into_stages(model: FamilyModel, per_rank: int) -> list[Stage]:
    """Remove from a model on the meta device everything that this rank's stages do not need. Returns the stages."""
    trunk, total = model.model, model.mesh.pp.size * per_rank
    layers = list(trunk.layers)
    costs = [active_parameters(block) for block in trunk.layers.values()]
    costs[-1] += model.head_weight.numel()  # the head goes with the last block
    shares = partition_layers(costs, total)
    stages = [
        Stage(model, [layers[i] for i in shares[number]], first=number == 0, last=number == total - 1)
        for number in stages_of_rank(model.mesh, per_rank)
    ]
    kept = [block for stage in stages for block in stage.blocks]
    for layer in layers:
        if not any(trunk.layers[layer] is block for block in kept):
            del trunk.layers[layer]
    if all(stage.embed_tokens is None for stage in stages):
        del trunk.embed_tokens
    if not stages[-1].last:
        del trunk.norm
        if model.lm_head is not None:
            del model.lm_head
    return stages


def active_parameters(block: nn.Module) -> float:
    """Number of parameters of a block that one token uses (routed experts count top_k of all)."""
    count = float(_parameters(block))
    for module in block.modules():
        if isinstance(module, MoE):
            idle = 1 - module.gate.top_k / module.experts.num_experts
            count -= idle * _parameters(module.experts)
    return count


def _parameters(module: nn.Module) -> int:
    """Number of parameters, of quantized weights as many as they stand for."""
    count = sum(parameter.numel() for parameter in module.parameters())
    quantized = [layer for layer in module.modules() if isinstance(layer, QuantizedLinear | QuantizedGroupedLinear)]
    return count + sum(layer.code.shape.numel() - layer.weight.numel() for layer in quantized)
