"""The optimizers that can be timed, each with the settings its authors recommend. Add one as a row of `_ENTRIES`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldadam import LDAdamW
from ldadam.bench.capture import CapturedStep
from ldadam.bench.weights import Weights
from ldadam.hyperparameters import BACKENDS
from ldadam.subspace import random_basis
from ldadam.training.errors import UsageError

LR = 1e-4


class Stepper(Protocol):
    """What is timed: `step`, and the state that it keeps."""

    def step(self) -> Any:
        """Take a step with the gradients as they are."""

    @property
    def state(self) -> Mapping[Any, Any]:
        """By parameter, as in `torch.optim.Optimizer`."""
        ...


@dataclass(frozen=True)
class Entry:
    """One optimizer.

    Attributes:
        name: as given to `--optimizers`.
        build: makes it, for weights and a rank.
        install: what to install where its import fails.
        backend: of LDAdamW, whose equality with the page is checked first; None for other optimizers.
        counts_bytes: whether `cost` has a formula for it.
        overwrites_gradients: whether gradients have to be made anew after it has run.
        refresh: recomputes the projection of one matrix, for those that do so every `UPDATE_PROJ_GAP` steps.
    """

    name: str
    build: Callable[[Weights, int], Stepper]
    install: str = ""
    backend: str | None = None
    counts_bytes: bool = False
    overwrites_gradients: bool = False
    refresh: Callable[[Any, Tensor], None] | None = None


# Steps from one projection to the next, as GaLore and Fira recommend.
UPDATE_PROJ_GAP = 200

# No step that is timed as an ordinary one recomputes a projection.
_NEVER = sys.maxsize


class Combined:
    """Two optimizers that step together, for those that take matrices only."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    @property
    def state(self) -> Mapping[Any, Any]:
        """The state of all."""
        return {param: state for optimizer in self.optimizers for param, state in optimizer.state.items()}


def find_entry(name: str) -> Entry:
    """The optimizer called `name`: a row of the table, LDAdamW with a backend, or module:Class.

    Raises:
        UsageError: there is none.
    """
    base, _, variant = name.partition(":")
    if base == "ldadamw" and variant in ("", "graph", *BACKENDS):
        backend = variant or "auto"
        return Entry(name, _ldadamw(backend), backend=backend, counts_bytes=True)
    if name in _ENTRIES:
        return _ENTRIES[name]
    if variant and base not in ("ldadamw", *_ENTRIES):
        return Entry(name, _any_class(base, variant), overwrites_gradients=True)
    known = ", ".join(["ldadamw", *(f"ldadamw:{one}" for one in ("graph", *BACKENDS)), *_ENTRIES])
    raise UsageError(f"unknown optimizer {name!r}: expected one of {known}, or module:Class")


def _ldadamw(backend: str) -> Callable[[Weights, int], Stepper]:
    return lambda weights, rank: ldadamw(weights, rank, backend=backend, lr=LR)


def ldadamw(weights: Weights, rank: int, *, backend: str, **options: Any) -> Stepper:
    """LDAdamW with a backend; "graph" is "auto", captured in a CUDA graph."""
    groups = _groups(weights, rank=rank)
    if backend == "graph":
        return CapturedStep(LDAdamW(groups, rank=None, capturable=True, **options))
    return LDAdamW(groups, rank=None, backend=backend, **options)


def _groups(weights: Weights, **options: Any) -> list[dict[str, Any]]:
    """The low-rank group with its options, and the dense group without them."""
    groups: list[dict[str, Any]] = [{"params": weights.low_rank, **options}]
    if weights.dense:
        groups.append({"params": weights.dense})
    return groups


def _adamw(weights: Weights, rank: int) -> Stepper:
    return torch.optim.AdamW(weights.params, lr=LR, weight_decay=0.0, fused=True)


def _foreach_adamw(weights: Weights, rank: int) -> Stepper:
    return torch.optim.AdamW(weights.params, lr=LR, weight_decay=0.0, foreach=True)


def _adafactor(weights: Weights, rank: int) -> Stepper:
    from torch.optim import Adafactor

    return Adafactor(weights.params, lr=LR)


def _muon(weights: Weights, rank: int) -> Stepper:
    from torch.optim import Muon

    matrices = Muon(weights.low_rank, lr=LR)
    return Combined(matrices, torch.optim.AdamW(weights.dense, lr=LR, fused=True)) if weights.dense else matrices


def _adamw8bit(weights: Weights, rank: int) -> Stepper:
    from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    return AdamW8bit(weights.params, lr=LR, weight_decay=0.0)


def _adamw4bit(weights: Weights, rank: int) -> Stepper:
    from torchao.optim import AdamW4bit  # pyright: ignore[reportMissingImports]

    return AdamW4bit(weights.params, lr=LR, weight_decay=0.0)


def _galore(weights: Weights, rank: int) -> Stepper:
    from galore_torch import GaLoreAdamW  # pyright: ignore[reportMissingImports]
    from galore_torch.galore_projector import GaLoreProjector  # pyright: ignore[reportMissingImports]

    options = {"rank": rank, "update_proj_gap": _NEVER, "scale": 0.25, "proj_type": "std"}
    optimizer = GaLoreAdamW(_groups(weights, **options), lr=LR, no_deprecation_warning=True)
    for param in weights.low_rank:
        projector = GaLoreProjector(**options)
        projector.ortho_matrix = _any_projection(param, rank)
        # Step 0 would compute a projection.
        optimizer.state[param].update(projector=projector, step=1)
    return optimizer


def _refresh_galore(projector: Any, grad: Tensor) -> None:
    projector.get_orthogonal_matrix(grad, projector.rank, type="right" if grad.shape[0] >= grad.shape[1] else "left")


def _fira(weights: Weights, rank: int) -> Stepper:
    from pytorch_optimizer import Fira  # pyright: ignore[reportMissingImports]
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector  # pyright: ignore[reportMissingImports]

    options = {"rank": rank, "update_proj_gap": _NEVER, "scale": 0.25, "projection_type": "std"}
    optimizer = Fira(_groups(weights, **options), lr=LR)
    for param in weights.low_rank:
        projector = GaLoreProjector(**options)
        projector.ortho_matrix = _any_projection(param, rank)
        optimizer.state[param]["projector"] = projector
    return optimizer


def _refresh_fira(projector: Any, grad: Tensor) -> None:
    projector.update_ortho_matrix(grad, from_random_matrix=False)


def _any_projection(param: Tensor, rank: int) -> Tensor:
    """An orthonormal projection of the shorter side, which costs a step as much as the one of an SVD."""
    rows, columns = param.shape
    basis = random_basis(min(rows, columns), min(rank, rows, columns)).to(param)
    return basis.mT.contiguous() if rows >= columns else basis


def _apollo(weights: Weights, rank: int) -> Stepper:
    from apollo_torch import APOLLOAdamW  # pyright: ignore[reportMissingImports]

    options = {"rank": rank, "proj": "random", "scale_type": "channel", "scale": 1, "proj_type": "std"}
    return APOLLOAdamW(_groups(weights, **options, update_proj_gap=UPDATE_PROJ_GAP), lr=LR)


def _dct_adamw(weights: Weights, rank: int) -> Stepper:
    from ista_daslab_optimizers.fft_low_rank.dct_adamw import DCTAdamW  # pyright: ignore[reportMissingImports]

    options = {"proj": "dct", "use_ef": True, "rotate_subspace": True}
    return DCTAdamW(weights.params, lr=LR, weight_decay=0.0, rank=rank, **options)


def _any_class(module: str, name: str) -> Callable[[Weights, int], Stepper]:
    """An optimizer class by its place; it gets the rank as an argument if it has one, else in its low-rank group."""

    def build(weights: Weights, rank: int) -> Stepper:
        optimizer_class = getattr(importlib.import_module(module), name)
        if "rank" in inspect.signature(optimizer_class).parameters:
            return optimizer_class(weights.params, lr=LR, rank=rank)
        return optimizer_class(_groups(weights, rank=rank), lr=LR)

    return build


_ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("adamw", _adamw, counts_bytes=True),
        Entry("adamw:foreach", _foreach_adamw, counts_bytes=True),
        Entry("adafactor", _adafactor, install="'torch>=2.5'"),
        Entry("muon", _muon, install="'torch>=2.9'"),
        Entry("adamw8bit", _adamw8bit, install="torchao"),
        Entry("adamw4bit", _adamw4bit, install="torchao"),
        Entry("galore", _galore, install="galore-torch", refresh=_refresh_galore),
        Entry("apollo", _apollo, install="apollo-torch"),
        Entry("fira", _fira, install="pytorch_optimizer", refresh=_refresh_fira),
        Entry("dct", _dct_adamw, install="ista-daslab-optimizers", overwrites_gradients=True),
    )
}
