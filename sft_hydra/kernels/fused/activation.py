"""Activations between the matrices of a feed-forward layer, each in one kernel forward and one backward, in Triton:
silu(gate) * up and squared ReLU."""

from typing import Any

import torch
import triton
import triton.language as tl

from sft_hydra.kernels.custom_operator import operator

BLOCK = 1024


@triton.jit
def _silu_forward(gate, up, out, width, gate_stride, up_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    g = tl.load(gate + row * gate_stride + columns, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _silu_backward(grad, gate, up, gate_out, up_out, width, gate_stride, up_stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    upstream = tl.load(grad + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + columns, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + columns, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    to_gate = upstream * u * s * (1 + g * (1 - s))
    tl.store(gate_out + row * out_stride + columns, to_gate.to(gate_out.dtype.element_ty), mask=mask)
    tl.store(up_out + row * out_stride + columns, (upstream * g * s).to(up_out.dtype.element_ty), mask=mask)


@triton.jit
def _relu2_forward(x, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    value = tl.maximum(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), 0.0)
    tl.store(out + at, (value * value).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _relu2_backward(grad, x, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    value = tl.maximum(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), 0.0)
    upstream = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, (2 * value * upstream).to(out.dtype.element_ty), mask=mask)


def _grid(x: torch.Tensor) -> tuple[int, int]:
    return len(x), triton.cdiv(x.shape[1], BLOCK)


def _run_silu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    out = _fake_silu(gate, up)
    if len(out):
        _silu_forward[_grid(gate)](gate, up, out, gate.shape[1], gate.stride(0), up.stride(0), BLOCK=BLOCK)
    return out


def _fake_silu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate.new_empty(gate.shape)


def _run_silu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, joint: bool) -> list[torch.Tensor]:
    outs = _fake_silu_backward(grad, gate, up, joint)
    to_gate, to_up = outs[0].chunk(2, dim=1) if joint else outs
    if len(grad):
        _silu_backward[_grid(grad)](
            grad, gate, up, to_gate, to_up,
            gate.shape[1], gate.stride(0), up.stride(0), to_gate.stride(0), BLOCK=BLOCK,
        )  # fmt: skip
    return outs


def _fake_silu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, joint: bool) -> list[torch.Tensor]:
    rows, width = gate.shape
    return [grad.new_empty(rows, 2 * width)] if joint else [torch.empty_like(grad), torch.empty_like(grad)]


def _run_relu2(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    if x.numel():
        _relu2_forward[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), BLOCK=BLOCK)
    return out


def _run_relu2_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    if x.numel():
        _relu2_backward[(triton.cdiv(x.numel(), BLOCK),)](grad, x, out, x.numel(), BLOCK=BLOCK)
    return out


silu_forward = operator("silu_product(Tensor gate, Tensor up) -> Tensor", _run_silu, _fake_silu)
silu_backward = operator(
    "silu_product_backward(Tensor grad, Tensor gate, Tensor up, bool joint) -> Tensor[]",
    _run_silu_backward,
    _fake_silu_backward,
)
relu2_forward = operator("relu2(Tensor x) -> Tensor", _run_relu2, torch.empty_like)
relu2_backward = operator(
    "relu2_backward(Tensor grad, Tensor x) -> Tensor", _run_relu2_backward, lambda grad, x: torch.empty_like(x)
)


def silu_product(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up (T, width); without `up`, `gate` (T, 2 * width) holds both, the gate first."""
    return _SiluProduct.apply(gate, up)


def relu2(x: torch.Tensor) -> torch.Tensor:
    """relu(x) squared."""
    return _Relu2.apply(x)


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
        gate, up = gate.contiguous(), None if up is None else up.contiguous()
        ctx.joint = up is None
        ctx.save_for_backward(*(gate,) if up is None else (gate, up))
        return silu_forward(*gate.chunk(2, dim=1)) if up is None else silu_forward(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        halves = ctx.saved_tensors[0].chunk(2, dim=1) if ctx.joint else ctx.saved_tensors
        results = silu_backward(grad.contiguous(), *halves, ctx.joint)
        return results[0], None if ctx.joint else results[1]


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return relu2_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return relu2_backward(grad.contiguous(), *ctx.saved_tensors)


def example(device: torch.device) -> None:
    """One forward and backward pass of each."""
    x = torch.ones(3, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    (silu_product(x) + silu_product(x[:, :32], x[:, 32:]) + relu2(x)[:, :32]).sum().backward()
