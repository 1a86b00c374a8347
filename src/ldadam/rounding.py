"""Stochastic rounding of 16-bit weights: up or down by chance, so that the mean of what is stored is what was computed.

Nearest rounding loses an update below half a unit in the last place, 2^-9 of a bfloat16 weight, at every step; here it
is kept on average. The chance is a hash of a seed, the parameter's number, its step and the entry's index: there is no
generator whose state would have to be saved, replicas round alike, and a CUDA graph hashes the step of each replay.

Everything is 32-bit unsigned arithmetic, here on Python ints and int64 tensors, which hold its products.
"""

from typing import TypeVar

import torch
from torch import Tensor

from ldadam.pieces import pieces

SEED = 0x1DADA11

# Of `mix`. Both are below 2^31, so that products stay below 2^63. Source: a search for low bias,
# https://github.com/skeeto/hash-prospector.
MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)

_MASK = 0xFFFFFFFF
_BITS_OF_NOISE = 16

# The smallest normal float16, and the inverse of the distance between smaller ones.
FLOAT16_NORMAL = 2.0**-14
FLOAT16_SUBNORMALS = 2.0**24

Integer = TypeVar("Integer", int, Tensor, int | Tensor)


def rounds(dtype: torch.dtype) -> bool:
    """Whether weights of a dtype are rounded by chance; float32 and float64 keep updates well enough."""
    return dtype in (torch.bfloat16, torch.float16)


def mix(number: Integer) -> Integer:
    """A hash of 32 bits to 32 bits: a bijection in which each input bit changes each output bit about half the time.

    Its form, shifts and multiplications in turn, is that of MurmurHash3's finaliser.
    """
    number = (number ^ (number >> 16)) * MULTIPLIERS[0] & _MASK
    number = (number ^ (number >> 15)) * MULTIPLIERS[1] & _MASK
    return number ^ (number >> 15)


def noise_key(number: int | Tensor, step: float | Tensor) -> int | Tensor:
    """Where the noise of a parameter begins at a step; an int64 tensor where an argument is a tensor.

    Args:
        number: the parameter's place in its optimizer, over all groups.
        step: t, from 1.
    """
    count = step.to(torch.int64) if isinstance(step, Tensor) else int(step)
    start = mix(SEED + number)
    return mix((start + count) & _MASK)  # pyright: ignore[reportArgumentType]


def noise_bits(key: int | Tensor, count: int, device: torch.device) -> Tensor:
    """Uniform 16-bit numbers, int64 (count,), for the entries of a parameter in the order of their indices."""
    return mix((torch.arange(count, device=device) + key) & _MASK) >> (32 - _BITS_OF_NOISE)


def stochastic_round(values: Tensor, dtype: torch.dtype, *, key: int | Tensor) -> Tensor:
    """Float32 values in bfloat16 or float16: one of the two neighbours, the nearer one more likely; exact ones stay.

    The chance is exact to 2^-16 in bfloat16 and to 2^-13 in float16. NaNs and infinities stay.
    """
    flat = values.reshape(-1)
    rounded = torch.empty_like(flat, dtype=dtype)
    for part in pieces(flat):
        rounded[part] = _round(flat[part], dtype, key=key + part.start)
    return rounded.view(values.shape)


def _round(values: Tensor, dtype: torch.dtype, *, key: int | Tensor) -> Tensor:
    """Values of `dtype` in float32, from float32 values (count,): each plus noise, cut off."""
    bits, noise = values.view(torch.int32), noise_bits(key, len(values), values.device).to(torch.int32)
    if dtype == torch.bfloat16:
        rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)
    else:
        rounded = ((bits + (noise >> 3)) & -(1 << 13)).view(torch.float32)
        subnormal = (values * FLOAT16_SUBNORMALS + noise / (1 << _BITS_OF_NOISE)).floor() / FLOAT16_SUBNORMALS
        rounded = torch.where(values.abs() < FLOAT16_NORMAL, subnormal, rounded)
    return torch.where(values == values, rounded, values)
