"""Ways to run the page on a group's matrices: each equal to `ldadam.algorithm`, by test."""

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch

from ldadam.backends.partial import SharedSteps
from ldadam.backends.six_products import step_chunk_
from ldadam.backends.update import ParamUpdate

_MODULES = {name: f"ldadam.backends.{name}" for name in ("eager", "batched", "compiled", "triton")}


def step_(updates: Sequence[ParamUpdate], *, backend: str) -> None:
    """Move parameters and their state, in place, by one step each."""
    for name, chosen in _by_backend(updates, backend).items():
        module = import_module(_MODULES[name])
        module.step_([update for update in chosen if update.layout is not None])
        module.dense_step_([update for update in chosen if update.layout is None])


def shared_steps(updates: Sequence[ParamUpdate], *, backend: str) -> Iterator[SharedSteps]:
    """The steps of matrices that ranks share, by six products whatever the backend: the page needs a whole matrix."""
    seen: Counter[int] = Counter()  # matrices of each parameter
    for name, chosen in _by_backend(updates, backend).items():
        module = import_module(_MODULES[name if name == "triton" else "batched"])
        for products in module.products(chosen):
            shards, matrices = products.chunk.kind.shards, products.chunk.matrices
            assert shards is not None
            places = []
            for matrix in matrices:  # a stack's empty blocks all begin at the same entry
                places.append((matrix.number, matrix.first_entry, seen[matrix.number]))
                seen[matrix.number] += 1
            yield SharedSteps(step_chunk_(products), shards, places)


def _by_backend(updates: Sequence[ParamUpdate], backend: str) -> dict[str, list[ParamUpdate]]:
    chosen: dict[str, list[ParamUpdate]] = {}
    for update in updates:
        name = pick(update.param.device) if backend == "auto" else backend
        chosen.setdefault(name, []).append(update)
    return chosen


def pick(device: torch.device, *, elsewhere: bool = False) -> str:
    """What "auto" is on a device: Triton's kernels on CUDA where Triton is installed, else torch's.

    A device `elsewhere` is one of a machine that has Triton, which comes with torch for CUDA on Linux.
    """
    is_cuda = device.type == "cuda"
    return "triton" if is_cuda and (elsewhere or find_spec("triton") is not None) else "batched"


def explain(backend: str, device: torch.device, *, elsewhere: bool = False) -> str:
    """Which backend runs on a device, and why, in one line."""
    if backend != "auto":
        return f"{backend}: as its group says"
    if pick(device, elsewhere=elsewhere) == "triton":
        why = "CUDA, and Triton, as torch for CUDA on Linux has it" if elsewhere else "CUDA, and Triton is installed"
        return f"triton: {why}; odd layouts, scaled_residual and ranks above 256 (64 with E in codes) run batched"
    return f"batched: Triton's kernels need CUDA and the triton package; parameters are on {device.type}"
