"""Tiles of A, E and W in Triton kernels, whatever they are stored as: floats, codes in blocks, rounded by chance.

With E in codes, A = G + E is added up in registers by each kernel that reads it, and the last one encodes the new E
there: no float copy of E exists. A tile then covers whole blocks of codes, which lie along the parameter's rows.
"""

# The signatures are Triton's: untyped, with constants in capitals.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from ldadam import rounding
from ldadam.quantization import BLOCK, LARGEST_CODE, SCALE_DTYPE

# Kernels read module constants only as `constexpr`.
ENTRIES = tl.constexpr(BLOCK)
LARGEST_IN_8_BITS = tl.constexpr(LARGEST_CODE["int8"])
LARGEST_IN_4_BITS = tl.constexpr(LARGEST_CODE["int4"])
MULTIPLIER, SECOND_MULTIPLIER = (tl.constexpr(multiplier) for multiplier in rounding.MULTIPLIERS)
FLOAT16_NORMAL = tl.constexpr(rounding.FLOAT16_NORMAL)
FLOAT16_SUBNORMALS = tl.constexpr(rounding.FLOAT16_SUBNORMALS)
SMALLEST_SCALE = tl.constexpr(torch.finfo(SCALE_DTYPE).tiny)


@triton.jit
def matrix_pointer(table, index, dtype: tl.constexpr):
    """A pointer from a table of addresses; torch aligns storage to 64 bytes, `multiple_of` tells the compiler."""
    address = tl.multiple_of(tl.load(table + index), 16)
    return address.to(tl.pointer_type(dtype))


@triton.jit
def scale_pointer(table, index):
    """The same to scales, of which each matrix of a stack may start at any address."""
    return tl.load(table + index).to(tl.pointer_type(tl.bfloat16))


@triton.jit
def load_corrected(
    grad, error, scale, line, col, m, n, grad_lines, stride_m, stride_n, sign,
    ADD: tl.constexpr, BITS: tl.constexpr, ALONG_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of what `error` holds or, with ADD, of that plus sign G in float32; G counts in its first `grad_lines`.

    E is in codes of BITS bits, in blocks along n or along m; or it is float, where BITS is 0.
    """
    lines = line + tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_N)
    inside = (lines[:, None] < m) & (cols[None, :] < n)
    at = lines[:, None] * stride_m + cols[None, :] * stride_n
    if BITS == 0:
        tile = tl.load(error + at, mask=inside, other=0.0)
    elif ALONG_N:
        tile = load_codes(error, scale, line, col, m, n, BITS, BLOCK_M, BLOCK_N)
    else:
        tile = tl.trans(load_codes(error, scale, col, line, n, m, BITS, BLOCK_N, BLOCK_M))
    if ADD:
        added = tl.load(grad + at, mask=(lines[:, None] < grad_lines) & inside, other=0.0)
        tile = added.to(tl.float32) * sign + tile.to(tl.float32)
    return tile


@triton.jit
def load_codes(codes, scale, row, col, num_rows, num_cols, BITS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The float32 tile (ROWS, COLS) that codes and scales stand for; its first column starts a block."""
    rows = row + tl.arange(0, ROWS)
    if BITS == 4:
        width = (num_cols + 1) // 2
        pairs = col // 2 + tl.arange(0, COLS // 2)
        inside = (rows[:, None] < num_rows) & (pairs[None, :] < width)
        packed = tl.load(codes + rows[:, None] * width + pairs[None, :], mask=inside, other=0).to(tl.int32)
        levels = tl.reshape(tl.join(((packed & 15) ^ 8) - 8, ((packed >> 4) ^ 8) - 8), (ROWS, COLS))
    else:
        cols = col + tl.arange(0, COLS)
        inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
        levels = tl.load(codes + rows[:, None] * num_cols + cols[None, :], mask=inside, other=0)
    num_blocks = (num_cols + ENTRIES - 1) // ENTRIES
    blocks = col // ENTRIES + tl.arange(0, COLS // ENTRIES)
    inside = (rows[:, None] < num_rows) & (blocks[None, :] < num_blocks)
    scales = tl.load(scale + rows[:, None] * num_blocks + blocks[None, :], mask=inside, other=0.0).to(tl.float32)
    spread = tl.broadcast_to(scales[:, :, None], (ROWS, COLS // ENTRIES, ENTRIES))
    return levels.to(tl.float32) * tl.reshape(spread, (ROWS, COLS))


@triton.jit
def store_codes(
    codes, scale, tile, row, col, num_rows, num_cols, BITS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """`quantization.encode` of a float32 tile that is zero outside of its matrix; its first column starts a block."""
    LARGEST: tl.constexpr = LARGEST_IN_4_BITS if BITS == 4 else LARGEST_IN_8_BITS
    rows = row + tl.arange(0, ROWS)
    num_blocks = (num_cols + ENTRIES - 1) // ENTRIES
    blocks = col // ENTRIES + tl.arange(0, COLS // ENTRIES)
    tile = tl.reshape(tile, (ROWS, COLS // ENTRIES, ENTRIES))
    scales = to_bfloat16(tl.max(tl.abs(tile), axis=2) / LARGEST)
    scales = tl.where(scales < SMALLEST_SCALE, 0.0, scales)
    inside = (rows[:, None] < num_rows) & (blocks[None, :] < num_blocks)
    tl.store(scale + rows[:, None] * num_blocks + blocks[None, :], scales.to(tl.bfloat16), mask=inside)
    levels = tl.floor(tile / tl.where(scales == 0, 1.0, scales)[:, :, None] + 0.5).to(tl.int32)
    if BITS == 4:
        low, high = tl.split(tl.reshape(levels, (ROWS, COLS // 2, 2)))
        width = (num_cols + 1) // 2
        pairs = col // 2 + tl.arange(0, COLS // 2)
        inside = (rows[:, None] < num_rows) & (pairs[None, :] < width)
        packed = (low & 15) | ((high & 15) << 4)
        tl.store(codes + rows[:, None] * width + pairs[None, :], packed.to(tl.uint8), mask=inside)
    else:
        cols = col + tl.arange(0, COLS)
        inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
        levels = tl.reshape(levels, (ROWS, COLS)).to(tl.int8)
        tl.store(codes + rows[:, None] * num_cols + cols[None, :], levels, mask=inside)


@triton.jit
def to_bfloat16(values):
    """Float32 values, rounded to the nearest bfloat16, halves to even; Triton's interpreter would truncate them."""
    bits = values.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return tl.where(values == values, rounded.to(tl.float32, bitcast=True), values)


@triton.jit
def mix(number):
    """`rounding.mix`."""
    number = (number ^ (number >> 16)) * MULTIPLIER
    number = (number ^ (number >> 15)) * SECOND_MULTIPLIER
    return number ^ (number >> 15)


@triton.jit
def stochastic_round(values, key, at, DTYPE: tl.constexpr):
    """`rounding.stochastic_round` of float32 values, whose noise begins at `key`, at entries `at` of a matrix."""
    noise = mix(at.to(tl.uint32) + key.to(tl.uint32)) >> 16
    bits = values.to(tl.uint32, bitcast=True)
    if tl.bfloat16 == DTYPE:
        rounded = ((bits + noise) >> 16 << 16).to(tl.float32, bitcast=True)
    else:
        rounded = ((bits + (noise >> 3)) >> 13 << 13).to(tl.float32, bitcast=True)
        subnormal = tl.floor(values * FLOAT16_SUBNORMALS + noise.to(tl.float32) / 65536) / FLOAT16_SUBNORMALS
        rounded = tl.where(tl.abs(values) < FLOAT16_NORMAL, subnormal, rounded)
    return tl.where(values == values, rounded, values).to(DTYPE)
