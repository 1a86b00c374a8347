"""Peak of the memory that a step needs on top of what it keeps, and what is free."""

from __future__ import annotations

import os

import torch

from ldadam.bench.subjects import Stepper
from ldadam.live_bytes import LiveBytes


def extra_memory(stepper: Stepper, device: torch.device) -> int:
    """Bytes at the peak of a step above those before it: of the CUDA allocator, or of CPU tensors.

    Scratch inside of one CPU operation is not seen, nor are tensors inside of compiled code.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stepper.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        stepper.step()
    return live.peak


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
