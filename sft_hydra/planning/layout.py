"""Layout: the sizes of tensor, pipeline, context, expert and data parallelism, as integers (torch-free).

world = pp * dp * cp * tp. Experts are split over the ranks of one pipeline stage, so ep divides dp * cp * tp. FSDP shards
over the ranks of a pipeline stage, divided by dp_replicate (HSDP).

Owner of: the sizes of a layout fit the world and the model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LONG_ROW = 32_768  # tokens; the activations of longer sequences rarely fit on one rank


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of all parallel dimensions of a run."""

    nodes: int = 1
    gpus_per_node: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    dp_replicate: int = 1
    vp: int = 1  # pipeline stages per rank (interleaved schedule)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.nodes * self.gpus_per_node

    @property
    def dp(self) -> int:
        """Data-parallel size: ranks that read different packed sequences."""
        return self.world // (self.tp * self.pp * self.cp)

    @property
    def shards(self) -> int:
        """Number of ranks over which FSDP shards parameters that no other dimension splits."""
        return self.world // (self.pp * self.dp_replicate)

    def describe(self) -> str:
        """One line with all sizes."""
        return (
            f"world {self.world} = {self.nodes} node(s) x {self.gpus_per_node}: tp={self.tp} pp={self.pp} cp={self.cp} "
            f"ep={self.ep} dp={self.dp}"
            + (f" (replicated {self.dp_replicate}x)" if self.dp_replicate > 1 else "")
            + (f" ({self.vp} stages per rank)" if self.vp > 1 else "")
        )


def plan_layout(
    architecture: dict[str, Any],
    seq_length: int,
    nodes: int,
    gpus_per_node: int,
    *,
    tp: int | None = None,
    pp: int | None = None,
    cp: int | None = None,
    ep: int | None = None,
    dp_replicate: int = 1,
    vp: int = 1,
) -> Layout:
    """The default layout for sizes that are None: context parallelism for sequences longer than LONG_ROW, expert parallelism
    within a node for mixtures of experts, no tensor and pipeline parallelism."""
    world = nodes * gpus_per_node
    tp, pp = tp or 1, pp or 1
    if cp is None:
        cp = 1
        while seq_length // cp > LONG_ROW and world % (2 * cp * tp * pp) == 0:
            cp *= 2
    experts = num_experts(architecture)
    if ep is None:
        ep = largest_common_divisor(world // (pp * dp_replicate), experts, at_most=gpus_per_node) if experts else 1
    return Layout(nodes, gpus_per_node, tp, pp, cp, ep, dp_replicate, vp)


def num_experts(architecture: dict[str, Any]) -> int:
    """Routed experts per layer; 0 for a dense model."""
    return int(architecture.get("n_routed_experts") or architecture.get("num_experts") or 0)


def largest_common_divisor(ranks: int, experts: int, at_most: int) -> int:
    """Largest number up to `at_most` that divides both `ranks` and `experts`."""
    return max(size for size in range(1, max(1, min(ranks, at_most)) + 1) if ranks % size == 0 and experts % size == 0)


def layout_problems(layout: Layout, architecture: dict[str, Any], seq_length: int) -> Iterator[str]:
    """Why a layout is invalid: one message per problem, with the arithmetic and a fix."""
    inner = layout.tp * layout.pp * layout.cp
    if layout.world % inner:
        yield (
            f"parallel.tp*pp*cp = {layout.tp}*{layout.pp}*{layout.cp} = {inner} does not divide the world of "
            f"{layout.world} = cluster.nodes {layout.nodes} x cluster.gpus_per_node {layout.gpus_per_node}; "
            "choose sizes whose product divides it, or change the cluster"
        )
        return
    if layout.dp % layout.dp_replicate:
        yield (
            f"parallel.dp_replicate={layout.dp_replicate} does not divide the data-parallel size {layout.dp}; set it to a "
            f"divisor of {layout.dp}"
        )
    yield from _expert_problems(layout, num_experts(architecture))
    yield from _attention_problems(layout, architecture)
    yield from _mamba_problems(layout, architecture)
    yield from _depth_problems(layout, int(architecture.get("num_hidden_layers") or 0))
    channels = int(architecture.get("intermediate_size") or 0)
    if channels % layout.tp:
        yield (
            f"parallel.tp={layout.tp} does not divide the model's intermediate_size {channels}; set it to a divisor of "
            f"{channels}"
        )
    if seq_length % (layout.cp * layout.tp):
        yield (
            f"seq_length={seq_length} is not divisible by cp*tp = {layout.cp}*{layout.tp} = {layout.cp * layout.tp}: "
            "every rank holds an equal slice of a sequence; choose a multiple"
        )


def _expert_problems(layout: Layout, experts: int) -> Iterator[str]:
    ranks = layout.world // (layout.pp * layout.dp_replicate)
    if ranks % layout.ep:
        copies = f" / dp_replicate {layout.dp_replicate}" if layout.dp_replicate > 1 else ""
        yield (
            f"parallel.ep={layout.ep} does not divide the {ranks} ranks that share a pipeline stage "
            f"(world {layout.world} / pp {layout.pp}{copies}); set it to a divisor of {ranks}"
        )
    if layout.ep > 1 and (not experts or experts % layout.ep):
        fix = f"set it to a divisor of {experts}" if experts else "a dense model needs parallel.ep=1"
        yield f"parallel.ep={layout.ep} does not divide the model's {experts} experts; {fix}"


def _attention_problems(layout: Layout, architecture: dict[str, Any]) -> Iterator[str]:
    heads = int(architecture.get("num_attention_heads") or 0)
    if heads % layout.tp:
        yield (
            f"parallel.tp={layout.tp} does not divide the model's {heads} attention heads; set it to a divisor of {heads}"
        )
        return
    kv_heads = int(architecture.get("num_key_value_heads") or heads)
    if heads and kv_heads % layout.tp and layout.tp % kv_heads:
        yield (
            f"parallel.tp={layout.tp} neither divides the model's {kv_heads} key-value heads nor is a multiple of them: "
            "the query heads of a key-value head would be split unevenly; choose a divisor or a multiple"
        )


def _mamba_problems(layout: Layout, architecture: dict[str, Any]) -> Iterator[str]:
    heads, groups = int(architecture.get("mamba_num_heads") or 0), int(architecture.get("n_groups") or 0)
    if not heads or not groups:
        return
    if groups % layout.tp:
        yield (
            f"parallel.tp={layout.tp} does not divide the model's {groups} Mamba groups; set it to a divisor of {groups}"
        )
        return
    local_groups, per_group = groups // layout.tp, heads // groups
    if per_group % (layout.cp // math.gcd(layout.cp, local_groups)):
        yield (
            f"parallel.cp={layout.cp}: {local_groups} Mamba groups of {per_group} heads on a tensor-parallel rank cannot be "
            f"split evenly over {layout.cp} context-parallel ranks; choose a cp that divides {local_groups * per_group}"
        )


def _depth_problems(layout: Layout, layers: int) -> Iterator[str]:
    stages = layout.pp * layout.vp
    if layout.vp > 1 and layout.pp == 1:
        yield (
            f"parallel.vp={layout.vp} needs pipeline parallelism, but parallel.pp={layout.pp}: set parallel.pp to 2 or more"
        )
    elif layers and layout.vp == 1 and layout.pp > layers:
        yield f"parallel.pp={layout.pp} is more than the model's {layers} layers; set it to at most {layers}"
    elif layers and stages > layers:
        yield (
            f"parallel.pp*vp = {layout.pp}*{layout.vp} = {stages} stages are more than the model's {layers} layers; lower "
            "one of them"
        )
