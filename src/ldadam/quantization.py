"""Numbers in 8 or 4 bits: symmetric codes in blocks, each with a scale of its own.

A block is `BLOCK` entries of a row, and its scale the size of one level: an entry is stored as code * scale. The scale
is the block's largest absolute entry over the largest code, rounded to the nearest bfloat16. That is at most 2^-8 off,
less than half a level at code 127, so that the largest entry still rounds to the largest code, and:

- no entry is off by more than half a level;
- what was decoded is encoded to the same codes and scales, bit by bit.

A scale rounded up would keep the first law alone: the largest entry could then fall on code 126.

This holds for blocks whose largest entry is from 2e-36 to 3e38. One of smaller entries is stored as zero, since its
scale would be below the smallest normal bfloat16. One with a NaN or an infinity decodes to nothing finite.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ldadam.pieces import pieces

# Entries of a row that share a scale: 0.25 bits an entry. Rows may end in a shorter block.
BLOCK = 64

# The largest code of each kind. The one below its negative is left out, so that codes are symmetric.
LARGEST_CODE = {"int8": 127, "int4": 7}

SCALE_DTYPE = torch.bfloat16


class Quantized(NamedTuple):
    """Quantised rows."""

    codes: Tensor  # int8 (..., cols), or two 4-bit codes a byte, the first one low: uint8 (..., ceil(cols / 2))
    scales: Tensor  # bfloat16 (..., ceil(cols / BLOCK))


def encode(values: Tensor, kind: str, *, noise: Tensor | None = None) -> Quantized:
    """The codes and scales of float rows (..., cols).

    Args:
        values: float rows; at least one column.
        kind: "int8" or "int4".
        noise: numbers in [0, 1) of the shape of `values`, for stochastic rounding: without bias where they are uniform,
            but for the largest entries of blocks, which cannot be rounded up past the largest code. None rounds to the
            nearest code.

    Example:
        >>> import torch
        >>> from ldadam.quantization import decode, encode
        >>> quantized = encode(torch.tensor([[7.0, -3.2, 0.6]]), "int4")
        >>> decode(quantized, cols=3)
        tensor([[ 7., -3.,  1.]])
    """
    cols = values.shape[-1]
    quantized = storage(tuple(values.shape[:-1]), cols, kind, device=values.device)
    stored = [tensor.view(-1, tensor.shape[-1]) for tensor in quantized]
    flat, chance = values.reshape(-1, cols), None if noise is None else noise.reshape(-1, cols)
    for rows in pieces(flat):
        new = _encode(flat[rows], kind, noise=0.5 if chance is None else chance[rows])
        for old, part in zip(stored, new, strict=True):
            old[rows] = part
    return quantized


def _encode(values: Tensor, kind: str, *, noise: Tensor | float) -> Quantized:
    """`encode` without bound on what it allocates."""
    cols = values.shape[-1]
    blocks = torch.nn.functional.pad(values, (0, -cols % BLOCK)).unflatten(-1, (-1, BLOCK))
    scales = (blocks.abs().amax(-1) / LARGEST_CODE[kind]).to(SCALE_DTYPE)
    scales = torch.where(scales < torch.finfo(SCALE_DTYPE).tiny, 0, scales)
    divisors = torch.where(scales == 0, 1, scales).to(values.dtype)
    levels = (blocks / divisors[..., None]).flatten(-2)[..., :cols]
    codes = (levels + noise).floor_().clamp_(-LARGEST_CODE[kind], LARGEST_CODE[kind]).to(torch.int8)
    return Quantized(_pack(codes) if kind == "int4" else codes, scales)


def decode(quantized: Quantized, *, cols: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows (..., cols) that codes and scales stand for, in `dtype`."""
    codes, scales = (tensor.reshape(-1, tensor.shape[-1]) for tensor in quantized)
    values = codes.new_empty(len(codes), cols, dtype=dtype)
    for rows in pieces(values):
        part = _unpack(codes[rows])[..., :cols] if kind_of(codes) == "int4" else codes[rows]
        torch.mul(part, scales[rows].to(dtype).repeat_interleave(BLOCK, dim=-1)[..., :cols], out=values[rows])
    return values.view(*quantized.codes.shape[:-1], cols)


def storage(rows: tuple[int, ...], cols: int, kind: str, *, device: torch.device | str = "meta") -> Quantized:
    """Codes and scales of rows, not yet written; on the meta device, their shapes and dtypes without memory."""
    width, dtype = (-(-cols // 2), torch.uint8) if kind == "int4" else (cols, torch.int8)
    codes = torch.empty(*rows, width, dtype=dtype, device=device)
    return Quantized(codes, torch.empty(*rows, -(-cols // BLOCK), dtype=SCALE_DTYPE, device=device))


def kind_of(codes: Tensor) -> str:
    """ "int8" or "int4"."""
    return "int4" if codes.dtype == torch.uint8 else "int8"


def _pack(codes: Tensor) -> Tensor:
    """Two codes a byte, as two's complements of four bits."""
    low, high = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2)).unbind(-1)
    return (low & 15).to(torch.uint8) | (high & 15).to(torch.uint8) << 4


def _unpack(packed: Tensor) -> Tensor:
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
    return (nibbles ^ 8) - 8
