"""What several benchmarks read from the command line."""

from __future__ import annotations

import torch

from ldadam.bench.equality import TOLERANCES
from ldadam.training.errors import UsageError


def listed(text: str) -> list[str]:
    """The parts of a text with commas between, without the empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def find_ranks(text: str) -> list[int]:
    """The ranks of `--rank`."""
    parts = listed(text)
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--rank must be a positive whole number, or several with commas between, got {text!r}")
    return [int(part) for part in parts]


def refuse_rank_above_every_matrix(rank: int, *, model: str, longest: int) -> None:
    """Refuse a rank at which nothing is projected; `longest` is the longest shorter side of the model's matrices."""
    if rank >= longest:
        raise UsageError(f"--rank {rank} fits no matrix of {model}: their longest shorter side is {longest}")


def find_device(name: str) -> torch.device:
    """The device of `--device`, which must be there."""
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device is cuda, and torch sees no CUDA device: use --device cpu")
    return torch.device(name)


def find_dtype(name: str) -> torch.dtype:
    """The dtype of `--dtype`: one that backends are compared in."""
    if name not in TOLERANCES:
        raise UsageError(f"--dtype must be one of {', '.join(TOLERANCES)}, got {name!r}")
    return getattr(torch, name)
