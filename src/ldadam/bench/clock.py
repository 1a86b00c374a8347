"""Seconds of a call on a device, and the device's own limits: bandwidth and products."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

# Larger than any cache, and for the product large enough that it is bound by arithmetic.
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
_NUM_TRIALS = 5


class Duration(NamedTuple):
    """Seconds until a call is done, and until it returns: on CUDA, what the host needs to launch it."""

    seconds: float
    host_seconds: float


def timed(call: Callable[[], Any], device: torch.device) -> Duration:
    """The duration of a call that starts on an idle device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    returned = time.perf_counter()
    synchronize(device)
    return Duration(time.perf_counter() - start, returned - start)


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Ceilings(NamedTuple):
    """The most that was reached: bytes read and written, operations of a product."""

    bytes_per_second: float
    operations_per_second: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The better of a large copy and a large sum in place, each at its fastest, and a large product in `dtype`.

    On CPUs a copy first reads what it overwrites, which the sum, as an optimizer does, has to read anyway.
    """
    size = _COPY_BYTES[device.type]
    target, source = (torch.ones(size // 4, device=device) for _ in range(2))
    copy = 2 * size / _fastest(partial(target.copy_, source), device)
    total = 3 * size / _fastest(partial(target.add_, source), device)
    del source, target
    side = _PRODUCT_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = 2 * side**3 / _fastest(partial(torch.mm, left, right), device)
    return Ceilings(max(copy, total), product)


def _fastest(call: Callable[[], Any], device: torch.device) -> float:
    call()
    return min(timed(call, device).seconds for _ in range(_NUM_TRIALS))
