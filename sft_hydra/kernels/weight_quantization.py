"""Matrices in four or eight bits, packed into bytes, through bitsandbytes.

`nf4`: NormalFloat4 in blocks of 64 with double quantization (QLoRA, Dettmers et al. 2023): 4.13 bits a weight. `int8`: eight
bits with an fp32 scale for each row (LLM.int8(), Dettmers et al. 2022). Values are those that transformers and peft get from
bitsandbytes. Imported only where a base is quantized: bitsandbytes is an extra. It was chosen over torchao, whose NF4 is a
prototype that peft does not load, because it runs on both CPUs and CUDA devices, and FSDP2 shards its bytes as they are.
"""

import logging
from functools import cache

import torch
import torch.nn.functional as F

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of CPU kernels that can be downloaded; none is used

from bitsandbytes import functional  # noqa: E402

BLOCK = 64  # weights that share a scale
GROUP = 256  # scales that share a scale of their own
FP32 = 4  # bytes
INT8_STEPS = 127


def packed_bytes(kind: str, rows: int, columns: int) -> int:
    """Bytes of a packed matrix."""
    if kind == "int8":
        return _whole(rows * columns, FP32) + FP32 * rows
    blocks = -(-rows * columns // BLOCK)
    return blocks * BLOCK // 2 + _whole(blocks, FP32) + FP32 * -(-blocks // GROUP) + FP32


def pack(kind: str, matrix: torch.Tensor) -> torch.Tensor:
    """The bytes (`packed_bytes`,) uint8 of a floating-point `matrix` (rows, columns), on its device."""
    if kind == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
        return torch.cat([_bytes(codes, FP32), _bytes(scales)])
    flat = F.pad(matrix.reshape(-1), (0, -matrix.numel() % BLOCK))
    codes, state = functional.quantize_4bit(flat, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    return torch.cat(
        [_bytes(codes), _bytes(state.absmax, FP32), _bytes(state.state2.absmax), _bytes(state.offset.reshape(1))]
    )


def unpack(kind: str, packed: torch.Tensor, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrices (n, rows, columns) in `dtype` that `packed` (n, bytes) uint8 stands for."""
    if kind == "int8":
        codes, _, scales = packed.split([rows * columns, -rows * columns % FP32, FP32 * rows], dim=1)
        rescaled = codes.view(torch.int8).unflatten(1, (rows, columns)) * _fp32(scales)[..., None] * (1 / INT8_STEPS)
        return rescaled.to(dtype)
    blocks = -(-rows * columns // BLOCK)
    sizes = [blocks * BLOCK // 2, blocks, -blocks % FP32, FP32 * -(-blocks // GROUP), FP32]
    codes, scale_codes, _, group_scales, offset = packed.split(sizes, dim=1)
    of_each = _fp32(group_scales).repeat_interleave(GROUP, dim=1)[:, :blocks]
    scales = _dynamic_map(packed.device)[scale_codes.int()] * of_each + _fp32(offset)
    state = functional.QuantState(  # flat: bitsandbytes' CPU kernel is wrong where rows are not multiples of a block
        absmax=scales.reshape(-1),
        shape=torch.Size([scales.numel() * BLOCK]),
        code=_nf4_map(packed.device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
    )
    values = functional.dequantize_4bit(codes.reshape(-1, 1), state)
    return values.view(len(packed), -1)[:, : rows * columns].unflatten(1, (rows, columns))


def _bytes(values: torch.Tensor, multiple: int = 1) -> torch.Tensor:
    """The memory of `values` as bytes, filled up to a `multiple`."""
    flat = values.contiguous().reshape(-1).view(torch.uint8)
    return F.pad(flat, (0, -len(flat) % multiple))


def _fp32(part: torch.Tensor) -> torch.Tensor:
    return part.contiguous().clone().view(torch.float32)


def _whole(size: int, multiple: int) -> int:
    return size + -size % multiple


@cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """The 256 values that codes of scales stand for."""
    return functional.create_dynamic_map().to(device)


@cache
def _nf4_map(device: torch.device) -> torch.Tensor:
    return functional.get_4bit_type("nf4", device=device)
