"""The optimizers that can be timed, each with the settings its authors recommend. Add one as a row of `_ENTRIES`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldadam import LDAdamW, peers
from ldadam.bench.capture import CapturedStep
from ldadam.hyperparameters import BACKENDS
from ldadam.peers import PEERS, Peer, Weights, groups_of, of_any_class
from ldadam.subspace import random_basis
from ldadam.training.errors import UsageError

LR = 1e-4

# No step that is timed as an ordinary one recomputes a projection.
_NEVER = sys.maxsize

# What is timed under a name of its own, beside the backends and "graph": "kept" is a step that keeps its basis.
OPTIONS: dict[str, dict[str, Any]] = {
    "residual": {"scaled_residual": True},
    "kept": {"update_interval": _NEVER},
}
_VARIANTS = ("graph", *OPTIONS)


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


def find_entry(name: str) -> Entry:
    """The optimizer called `name`: a row of the table, LDAdamW with a backend, or module:Class.

    Raises:
        UsageError: there is none.
    """
    base, _, variant = name.partition(":")
    if base == "ldadamw" and variant in ("", *_VARIANTS, *BACKENDS):
        backend = variant or "auto"
        return Entry(name, _ldadamw(backend), backend=backend, counts_bytes=backend not in OPTIONS)
    if name in _ENTRIES:
        return _ENTRIES[name]
    if variant and base not in ("ldadamw", *_ENTRIES):
        return _of_peer(of_any_class(name), overwrites_gradients=True)
    known = ", ".join(["ldadamw", *(f"ldadamw:{one}" for one in (*_VARIANTS, *BACKENDS)), *_ENTRIES])
    raise UsageError(f"unknown optimizer {name!r}: expected one of {known}, or module:Class")


def options_of(variant: str) -> dict[str, Any]:
    """What tells a variant of LDAdamW from its defaults."""
    return {"backend": "auto", **OPTIONS[variant]} if variant in OPTIONS else {"backend": variant}


def _ldadamw(backend: str) -> Callable[[Weights, int], Stepper]:
    return lambda weights, rank: ldadamw(weights, rank, backend=backend, lr=LR)


def ldadamw(weights: Weights, rank: int, *, backend: str, **options: Any) -> Stepper:
    """LDAdamW with a backend; "graph" is "auto", captured in a CUDA graph; or "auto" with one of `OPTIONS`."""
    groups = groups_of(weights, rank=rank)
    if backend == "graph":
        return CapturedStep(LDAdamW(groups, rank=None, capturable=True, **options))
    return LDAdamW(groups, rank=None, **options_of(backend), **options)


def _adamw(weights: Weights, rank: int) -> Stepper:
    return torch.optim.AdamW(weights.params, lr=LR, weight_decay=0.0, fused=True)


def _foreach_adamw(weights: Weights, rank: int) -> Stepper:
    return torch.optim.AdamW(weights.params, lr=LR, weight_decay=0.0, foreach=True)


def _galore(weights: Weights, rank: int) -> Stepper:
    from galore_torch.galore_projector import GaLoreProjector  # pyright: ignore[reportMissingImports]

    optimizer = peers.galore(weights, lr=LR, rank=rank, update_proj_gap=_NEVER)
    for param in weights.low_rank:
        projector = GaLoreProjector(**peers.galore_options(rank, update_proj_gap=_NEVER))
        projector.ortho_matrix = _any_projection(param, rank)
        # Step 0 would compute a projection.
        optimizer.state[param].update(projector=projector, step=1)
    return optimizer


def _refresh_galore(projector: Any, grad: Tensor) -> None:
    projector.get_orthogonal_matrix(grad, projector.rank, type="right" if grad.shape[0] >= grad.shape[1] else "left")


def _fira(weights: Weights, rank: int) -> Stepper:
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector  # pyright: ignore[reportMissingImports]

    optimizer = peers.fira(weights, lr=LR, rank=rank, update_proj_gap=_NEVER)
    for param in weights.low_rank:
        projector = GaLoreProjector(**peers.fira_options(rank, update_proj_gap=_NEVER))
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


def _of_peer(peer: Peer, **facts: Any) -> Entry:
    return Entry(peer.name, lambda weights, rank: peer.build(weights, lr=LR, rank=rank), peer.install, **facts)


_ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("adamw", _adamw, counts_bytes=True),
        Entry("adamw:foreach", _foreach_adamw, counts_bytes=True),
        *(_of_peer(PEERS[name]) for name in ("adafactor", "muon", "adamw8bit", "adamw4bit")),
        Entry("galore", _galore, PEERS["galore"].install, refresh=_refresh_galore),
        _of_peer(PEERS["apollo"]),
        Entry("fira", _fira, PEERS["fira"].install, refresh=_refresh_fira),
        _of_peer(PEERS["dct"], overwrites_gradients=True),
    )
}
