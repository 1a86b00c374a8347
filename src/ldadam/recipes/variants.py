"""The method with one thing changed, for ablations: the page's own functions, one matrix at a time.

None of these is meant for training: they are as slow as the page, and their checkpoints are of no use elsewhere. With
nothing changed, `Variant` takes the steps of `LDAdamW` (by test).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ldadam.algorithm import (
    LowRankState,
    adam_direction,
    change_basis,
    descend,
    scaled_residual,
    subspace_target,
)
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout, matrix_layout
from ldadam.subspace import power_iteration, random_basis, range_finder, top_singular_vectors

DEFAULTS = Hyperparameters()

Basis = Callable[[Tensor, Tensor], Tensor]


class Variant(Optimizer):
    """LDAdam with its parts as attributes, which subclasses replace.

    Args:
        params: groups with `rank`, or without for dense AdamW.
        lr: learning rate.
    """

    # A, what is lost of it and what is lost of the momentum, to E.
    first_basis: Basis = staticmethod(top_singular_vectors)
    next_basis: Basis = staticmethod(power_iteration)
    carries_moments = True
    keeps_gradient = True
    keeps_momentum = True

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "rank": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    layout = matrix_layout(param.shape, rank=group["rank"], proj_type="std") if group["rank"] else None
                    self._move_(param, layout, lr=group["lr"])

    def _move_(self, param: Tensor, layout: MatrixLayout | None, *, lr: float) -> None:
        state = self.state[param]
        state["step"] = step = state.get("step", 0) + 1
        grad = param.grad
        assert grad is not None
        if layout is None:
            update = _adam(grad, state, step)
        else:
            update = layout.from_matrix(self.matrix_update(layout.to_matrix(grad), state, layout, step))
        param.copy_(descend(param, update, lr=lr, weight_decay=0.0))

    def matrix_update(self, grad: Tensor, state: dict[str, Any], layout: MatrixLayout, step: int) -> Tensor:
        """U d of one matrix, and its next state."""
        (beta1, beta2), prev = DEFAULTS.betas, state.get("low_rank") or _first_state(grad, layout)
        corrected_grad = grad + prev.error_buffer  # A
        target = subspace_target(corrected_grad, prev, step=step, beta1=beta1, rho=DEFAULTS.rho)  # B
        basis = (self.first_basis if step == 1 else self.next_basis)(target, prev.basis)  # U
        carried = prev
        if self.carries_moments:
            carried = change_basis(prev, basis.mT @ prev.basis, step=step, betas=DEFAULTS.betas)
        low_rank_grad = basis.mT @ corrected_grad  # a
        exp_avg = beta1 * carried.exp_avg + (1 - beta1) * low_rank_grad  # m
        exp_avg_sq = beta2 * carried.exp_avg_sq + (1 - beta2) * low_rank_grad.square()  # v
        lost_grad = corrected_grad - basis @ low_rank_grad
        lost_momentum = beta1 / (1 - beta1) * (prev.basis @ prev.exp_avg - basis @ carried.exp_avg)
        error = torch.zeros_like(grad)  # E
        if self.keeps_gradient:
            error += lost_grad
        if self.keeps_momentum:
            error += lost_momentum
        state["low_rank"] = LowRankState(basis, exp_avg, exp_avg_sq, error)
        direction = adam_direction(exp_avg, exp_avg_sq, step=step, betas=DEFAULTS.betas, eps=DEFAULTS.eps)  # d
        return basis @ direction + self.residual(corrected_grad, basis, direction)

    def residual(self, corrected_grad: Tensor, basis: Tensor, direction: Tensor) -> Tensor | float:
        """What moves the weights beside U d: nothing."""
        return 0.0


def _first_state(grad: Tensor, layout: MatrixLayout) -> LowRankState:
    basis = random_basis(layout.m, layout.rank).to(grad)
    moment = grad.new_zeros(layout.rank, layout.n)
    return LowRankState(basis, moment, moment, torch.zeros_like(grad))


def _adam(grad: Tensor, state: dict[str, Any], step: int) -> Tensor:
    beta1, beta2 = DEFAULTS.betas
    zero = torch.zeros_like(grad)
    state["exp_avg"] = beta1 * state.get("exp_avg", zero) + (1 - beta1) * grad
    state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * grad.square()
    return adam_direction(state["exp_avg"], state["exp_avg_sq"], step=step, betas=DEFAULTS.betas, eps=DEFAULTS.eps)


class WithoutCarrying(Variant):
    """Moments stay as they are when the basis moves: no projection-aware update, as in GaLore."""

    carries_moments = False


class GradientFeedback(Variant):
    """E is what the projection drops of the gradient alone."""

    keeps_momentum = False


class MomentumFeedback(Variant):
    """E is what the change of basis drops of the momentum alone."""

    keeps_gradient = False


class WithoutFeedback(Variant):
    """E is zero."""

    keeps_gradient = keeps_momentum = False


class RangeFinderStart(Variant):
    """The first basis by power iterations from a random one instead of an SVD."""

    first_basis = staticmethod(range_finder)


class ResidualOfCorrected(Variant):
    """The scaled residual of A instead of G: what E gives back is scaled and applied at once, and kept as well."""

    def residual(self, corrected_grad: Tensor, basis: Tensor, direction: Tensor) -> Tensor:
        """phi (A - U a), with phi = |d| / |a| of each column."""
        return scaled_residual(corrected_grad, basis, direction)
