"""Stochastic rounding of 16-bit weights: up or down by chance, so that the mean of what is stored is what was computed.

Nearest rounding loses an update below half a unit in the last place, 2^-9 of a bfloat16 weight, at every step; here it
is kept on average. The chance is a hash of a seed, the parameter's number, its step and the entry's index: there is no
generator whose state would have to be saved, replicas round alike, and a CUDA graph hashes the step of each replay.

Everything is 32-bit unsigned arithmetic, here on Python ints and int64 tensors, which hold its products.
"""

from typing import TypeVar

import torch
from torch import Tensor

SEED = 0x1DADA11

_MASK = 0xFFFFFFFF
_BITS_OF_NOISE = 16

# The smallest normal float16, and the inverse of the distance between smaller ones.
_FLOAT16_NORMAL = 2.0**-14
_FLOAT16_SUBNORMALS = 2.0**24

Integer = TypeVar("Integer", int, Tensor)


def rounds(dtype: torch.dtype) -> bool:
    """Whether weights of a dtype are rounded by chance; float32 and float64 keep updates well enough."""
    return dtype in (torch.bfloat16, torch.float16)


def mix(number: Integer) -> Integer:
    """A hash of 32 bits to 32 bits: a bijection in which each input bit changes each output bit about half the time.

    Source: the xorshift-multiply form of MurmurHash3's finaliser, with constants from a search for low bias,
    https://github.com/skeeto/hash-prospector. Both are below 2^31, so that products stay below 2^63.
    """
    number = (number ^ (number >> 16)) * 0x21F0AAAD & _MASK
    number = (number ^ (number >> 15)) * 0x735A2D97 & _MASK
    return number ^ (number >> 15)


def noise_key(number: int, step: float | Tensor) -> int | Tensor:
    """Where the noise of a parameter begins at a step; an int64 tensor where the step is a tensor.

    Args:
        number: the parameter's place in its optimizer, over all groups.
        step: t, from 1.
    """
    count = step.to(torch.int64) if isinstance(step, Tensor) else int(step)
    start = mix(SEED + number)
    return mix((start + count) & _MASK)  # pyright: ignore[reportArgumentType]


def noise_bits(key: int | Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Uniform 16-bit numbers, int64, for the entries of a parameter in the order of its indices, modulo 2^32."""
    indices = torch.arange(shape.numel(), device=device).reshape(shape)
    return mix((indices + key) & _MASK) >> (32 - _BITS_OF_NOISE)


def stochastic_round(values: Tensor, dtype: torch.dtype, *, key: int | Tensor) -> Tensor:
    """Float32 values in bfloat16 or float16: one of the two neighbours, the nearer one more likely; exact ones stay.

    The chance is exact to 2^-16 in bfloat16 and to 2^-13 in float16. NaNs and infinities stay.
    """
    noise = noise_bits(key, values.shape, values.device).to(torch.int32)
    bits = values.view(torch.int32)
    if dtype == torch.bfloat16:
        rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)
    else:
        rounded = ((bits + (noise >> 3)) & -(1 << 13)).view(torch.float32)
        subnormal = (values * _FLOAT16_SUBNORMALS + noise / (1 << _BITS_OF_NOISE)).floor() / _FLOAT16_SUBNORMALS
        rounded = torch.where(values.abs() < _FLOAT16_NORMAL, subnormal, rounded)
    return torch.where(values == values, rounded, values).to(dtype)
