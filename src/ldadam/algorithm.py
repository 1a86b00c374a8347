"""The method on one page: LDAdam (Robert, Safaryan, Modoranu, Alistarh; ICLR 2025; arXiv 2410.16103).

Pure functions of tensors, batched over leading dimensions. Every faster or sharded path is tested against this page;
where they disagree, the page is right.

Legend, with the projected side of a weight matrix first:
    m, n    rows and columns of the weight matrix W and its gradient G
    r       rank: columns of the orthonormal basis U (m x r); the moments m, v are r x n
    t       number of the step being taken, from 1
    minus   the value after step t-1;  half: that value re-expressed in the new basis
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldadam.subspace import power_iteration

# By how much what the subspace misses of a column may outweigh what it sees.
RESIDUAL_CAP = 10.0


class LowRankState(NamedTuple):
    """What LDAdam remembers of one matrix (or of a stack of them) between two steps."""

    basis: Tensor  # U   (..., m, r)
    exp_avg: Tensor  # m   (..., r, n)
    exp_avg_sq: Tensor  # v   (..., r, n)
    error_buffer: Tensor  # E   (..., m, n), or a zero that broadcasts: no error feedback


def ldadam_step(
    grad: Tensor,
    prev: LowRankState,
    *,
    step: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    rho: float,
    next_basis: Callable[[Tensor, Tensor], Tensor] | None = power_iteration,
    adds_residual: bool = False,
) -> tuple[Tensor, LowRankState]:
    """U d and the next state, from G and the previous state; the weights move by -lr U d.

    `next_basis` maps (B, U_minus) to U. At t = 1, B is a multiple of A, so that the published start is
    `next_basis=top_singular_vectors`. None keeps the basis; then nothing is carried over, and nothing is lost.
    `adds_residual` moves the weights by -lr (U d + R) instead, which is no part of the paper.

    Source: Algorithm 1 of the paper.
    """
    beta1, beta2 = betas
    corrected_grad = grad + prev.error_buffer  # A = G + E
    basis, carried = prev.basis, prev
    if next_basis is not None:
        target = subspace_target(corrected_grad, prev, step=step, beta1=beta1, rho=rho)  # B
        basis = next_basis(target, prev.basis)  # U
        change = basis.mT @ prev.basis  # Q = U' U_minus
        carried = change_basis(prev, change, step=step, betas=betas)  # m_half, v_half
    low_rank_grad = basis.mT @ corrected_grad  # a = U' A
    exp_avg = beta1 * carried.exp_avg + (1 - beta1) * low_rank_grad  # m
    exp_avg_sq = beta2 * carried.exp_avg_sq + (1 - beta2) * low_rank_grad.square()  # v
    lost_momentum = prev.basis @ prev.exp_avg - basis @ carried.exp_avg  # U_minus m_minus - U m_half
    error_buffer = corrected_grad - basis @ low_rank_grad + beta1 / (1 - beta1) * lost_momentum  # E
    direction = adam_direction(exp_avg, exp_avg_sq, step=step, betas=betas, eps=eps)  # d
    update = basis @ direction
    if adds_residual:
        update = update + scaled_residual(grad, basis, direction)  # U d + R
    return update, LowRankState(basis, exp_avg, exp_avg_sq, error_buffer)


def subspace_target(
    corrected_grad: Tensor, prev: LowRankState, *, step: float | Tensor, beta1: float, rho: float
) -> Tensor:
    """B = rho U_minus m_hat + (1 - rho) A: the matrix that the new subspace should capture.

    Shapes: A (..., m, n) to B (..., m, n).
    """
    exp_avg_hat = unbiased(prev.exp_avg, beta1, step - 1)  # m_hat
    return rho * (prev.basis @ exp_avg_hat) + (1 - rho) * corrected_grad  # B


def change_basis(
    prev: LowRankState, change: Tensor, *, step: float | Tensor, betas: tuple[float, float]
) -> LowRankState:
    """m_half and v_half: the moments in the coordinates of the new basis, of which `change` is Q = U' U_minus.

    The second moment is split into mean and variance; the mean is rotated as a vector, the variance as if
    coordinates were uncorrelated. `abs` guards the estimate, which can go negative. All else is untouched.

    Shapes: change (..., r, r); moments stay (..., r, n).
    """
    beta1, beta2 = betas
    exp_avg = change @ prev.exp_avg  # m_half = Q m_minus
    exp_avg_hat = unbiased(prev.exp_avg, beta1, step - 1)  # m_hat
    exp_avg_sq_hat = unbiased(prev.exp_avg_sq, beta2, step - 1)  # v_hat
    variance = change.square() @ (exp_avg_sq_hat - exp_avg_hat.square())  # Q.Q (v_hat - m_hat.m_hat)
    mean_square = unbiased(exp_avg, beta1, step - 1).square()  # (Q m_hat).(Q m_hat)
    exp_avg_sq = bias(beta2, step - 1, exp_avg) * (variance + mean_square).abs()  # v_half
    return prev._replace(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)


def adam_direction(
    exp_avg: Tensor, exp_avg_sq: Tensor, *, step: float | Tensor, betas: tuple[float, float], eps: float
) -> Tensor:
    """d = m_hat / (sqrt(v_hat) + eps), Adam's direction; any shape, so that dense parameters use it too."""
    return unbiased(exp_avg, betas[0], step) / (unbiased(exp_avg_sq, betas[1], step).sqrt() + eps)  # d


def scaled_residual(grad: Tensor, basis: Tensor, direction: Tensor) -> Tensor:
    """R = phi (G - U g), g = U'G: what the subspace misses of G, each column scaled as Adam scales what it sees.

    Shapes: G (..., m, n), U (..., m, r), d (..., r, n) to R (..., m, n).

    Source of the idea: Fira (Chen et al., arXiv 2410.01623), for GaLore, without error feedback.
    """
    seen = basis.mT @ grad  # g
    return residual_scale(direction, seen, column_norms(grad)) * (grad - basis @ seen)  # R


def residual_scale(direction: Tensor, seen: Tensor, grad_norms: Tensor) -> Tensor:
    """phi = |d| / max(|g|, |G| / cap), column by column: R moves a column by at most `RESIDUAL_CAP` times d's length.

    Shapes: d and g (..., r, n), |G| (..., 1, n) to phi (..., 1, n); zero where G is.
    """
    seen_norms = column_norms(seen).maximum(grad_norms / RESIDUAL_CAP)
    return column_norms(direction) / (seen_norms + (seen_norms == 0)) * (seen_norms != 0)  # phi


def column_norms(matrix: Tensor) -> Tensor:
    """The Euclidean length of each column: (..., l, n) to (..., 1, n)."""
    return torch.linalg.vector_norm(matrix, dim=-2, keepdim=True)


def unbiased(moment: Tensor, beta: float, num_steps: float | Tensor) -> Tensor:
    """moment / (1 - beta^num_steps), and the moment itself, which is zero, before the first step."""
    correction = bias(beta, num_steps, moment)
    return moment / (correction + (correction == 0))


def bias(beta: float, num_steps: float | Tensor, moment: Tensor) -> float | Tensor:
    """1 - beta^num_steps; step counts that are tensors are float64 and broadcast, and give the moment's dtype."""
    correction = 1 - beta**num_steps
    return correction.to(moment.dtype) if isinstance(correction, Tensor) else correction


def descend(param: Tensor, update: Tensor, *, lr: float | Tensor, weight_decay: float) -> Tensor:
    """W = (1 - lr wd) W - lr U d: decoupled weight decay, then the update."""
    return (1 - lr * weight_decay) * param - lr * update  # W
