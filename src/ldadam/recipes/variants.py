"""The method with one thing changed, for ablations: the page's own functions, one matrix at a time.

None of these is meant for training: they are as slow as the page, and their checkpoints are of no use elsewhere. With
nothing changed, `Variant` takes the steps of `LDAdamW` (by test).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ldadam.algorithm import (
    LowRankState,
    adam_direction,
    change_basis,
    column_norms,
    descend,
    scaled_residual,
    subspace_target,
    unbiased,
)
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout, matrix_layout
from ldadam.subspace import power_iteration, random_basis, range_finder, top_singular_vectors

DEFAULTS = Hyperparameters()


class Variant(Optimizer):
    """LDAdam with its parts as attributes, which subclasses replace.

    Args:
        params: groups with `rank`, or without for dense AdamW.
        lr: learning rate.
    """

    carries_moments = True
    # Whether what is lost of A, and of the momentum, goes to E.
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
        rho = self.rho(corrected_grad, prev, step)
        target = subspace_target(corrected_grad, prev, step=step, beta1=beta1, rho=rho)  # B
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

    def first_basis(self, target: Tensor, basis: Tensor) -> Tensor:
        """U at t = 1, from B and a basis of its shape."""
        return top_singular_vectors(target, basis)

    def next_basis(self, target: Tensor, basis: Tensor) -> Tensor:
        """U from B and U_minus."""
        return power_iteration(target, basis)

    def rho(self, corrected_grad: Tensor, prev: LowRankState, step: int) -> float:
        """What the momentum weighs in B."""
        return DEFAULTS.rho

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

    def first_basis(self, target: Tensor, basis: Tensor) -> Tensor:
        """Power iterations from `basis`."""
        return range_finder(target, basis)


class ResidualOfCorrected(Variant):
    """The scaled residual of A instead of G: what E gives back is scaled and applied at once, and kept as well."""

    def residual(self, corrected_grad: Tensor, basis: Tensor, direction: Tensor) -> Tensor:
        """phi (A - U a), with phi = |d| / |a| of each column."""
        return scaled_residual(corrected_grad, basis, direction)


class DctBasis(Variant):
    """Columns of the cosine transform, those that see most of B: a basis that need not be stored or orthonormalized."""

    def first_basis(self, target: Tensor, basis: Tensor) -> Tensor:
        """As at any step."""
        return self.next_basis(target, basis)

    def next_basis(self, target: Tensor, basis: Tensor) -> Tensor:
        """The columns of which B has the largest rows."""
        cosines = cosine_basis(target.shape[0]).to(target)
        seen = column_norms((cosines.mT @ target).mT).squeeze(0)
        return cosines[:, seen.topk(basis.shape[1]).indices.sort().values]


@lru_cache(maxsize=8)
def cosine_basis(rows: int) -> Tensor:
    """The orthonormal DCT-II of this many rows, in float64: column k has frequency k."""
    places, frequencies = torch.arange(rows, dtype=torch.float64)[:, None] + 0.5, torch.arange(rows)
    basis = (math.pi / rows * places * frequencies).cos() * math.sqrt(2 / rows)
    basis[:, 0] /= math.sqrt(2)
    return basis


class BalancedRho(Variant):
    """rho of each matrix and step such that momentum and gradient are equally long in B."""

    def rho(self, corrected_grad: Tensor, prev: LowRankState, step: int) -> float:
        """|A| / (|A| + |m_hat|), once there is a momentum."""
        momentum, grad = _exp_avg_hat(prev, step).norm(), corrected_grad.norm()
        return float(grad / (grad + momentum)) if momentum > 0 else DEFAULTS.rho


class NoiseRho(Variant):
    """rho of each matrix and step is the share of noise, 1 - |m_hat|^2 / sum(v_hat): the noisier, the more momentum."""

    def rho(self, corrected_grad: Tensor, prev: LowRankState, step: int) -> float:
        """1 - |m_hat|^2 / sum of v_hat."""
        power = unbiased(prev.exp_avg_sq, DEFAULTS.betas[1], step - 1).sum()
        return 1 - float((_exp_avg_hat(prev, step).square().sum() / power).clamp(max=1)) if power > 0 else DEFAULTS.rho


def _exp_avg_hat(prev: LowRankState, step: int) -> Tensor:
    return unbiased(prev.exp_avg, DEFAULTS.betas[0], step - 1)


class SpectrumRanks(Variant):
    """Ranks follow the measured spectra, at the bytes of equal ranks.

    At `MOVES`, singular values of all A are sorted by share of their matrix's energy per number of state; the first
    ones that fit the budget are ranks. The new basis is of B's singular vectors, and the moments are carried over.
    """

    MOVES: Container[int] = range(10, 100_000, 50)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Choose ranks if it is time, and move every parameter that has a gradient."""
        with_rank = [(p, group["rank"]) for group in self.param_groups if group["rank"] for p in group["params"]]
        layouts = {p: matrix_layout(p.shape, rank=rank, proj_type="std") for p, rank in with_rank}
        found = {p: layout for p, layout in layouts.items() if layout is not None and p.grad is not None}
        if found and self.state[next(iter(found))].get("step", 0) + 1 in self.MOVES:
            for param, rank in ranks_of_spectra(found, self._energies(found)).items():
                self.state[param]["new_rank"] = rank
        super().step(closure)

    def _energies(self, layouts: dict[Tensor, MatrixLayout]) -> dict[Tensor, Tensor]:
        """Of each A, the squares of its singular values, as shares of their sum."""
        found = {}
        for param, layout in layouts.items():
            assert param.grad is not None
            squares = torch.linalg.svdvals(
                layout.to_matrix(param.grad) + self.state[param]["low_rank"].error_buffer
            ).square()
            found[param] = squares / squares.sum().clamp_min(torch.finfo(squares.dtype).tiny)
        return found

    def matrix_update(self, grad: Tensor, state: dict[str, Any], layout: MatrixLayout, step: int) -> Tensor:
        """As without, but the next basis has another rank if one was chosen."""
        self._new_rank = state.pop("new_rank", None)
        return super().matrix_update(grad, state, layout, step)

    def next_basis(self, target: Tensor, basis: Tensor) -> Tensor:
        """Of the new rank if there is one."""
        if self._new_rank is None:
            return power_iteration(target, basis)
        return top_singular_vectors(target, random_basis(len(target), self._new_rank).to(target))


def ranks_of_spectra(layouts: dict[Tensor, MatrixLayout], energies: dict[Tensor, Tensor]) -> dict[Tensor, int]:
    """Ranks whose state U, m, v has at most the bytes that the layouts' ranks have; at least 1 each."""
    cost = {param: layout.m + 2 * layout.n for param, layout in layouts.items()}
    left = sum((layout.rank - 1) * cost[param] for param, layout in layouts.items())
    ranks = dict.fromkeys(layouts, 1)
    worth = [(float(share) / cost[param], param) for param, shares in energies.items() for share in shares[1:]]
    for _, param in sorted(worth, key=lambda pair: pair[0], reverse=True):
        if cost[param] <= left:
            left -= cost[param]
            ranks[param] += 1
    return ranks


class SpectrumRanksOnce(SpectrumRanks):
    """Ranks by the spectra of the tenth step, and never again."""

    MOVES = (10,)
