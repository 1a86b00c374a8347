"""The page, rearranged so that a matrix is read by six products and no other m x n tensor is made.

With U_minus' U_minus = I, everything but the weights and the buffer follows from three small products with A:

    Y' = U_minus' B = rho m_hat + (1 - rho) U_minus' A
    X  = B Y        = rho U_minus (m_hat Y) + (1 - rho) A Y        U = orth(X)
    a  = U' A

and the buffer and the weights from two updates of low rank, in place:

    E  = A - [U, U_minus] [a + c m_half; -c m_minus]               c = beta1 / (1 - beta1)
    W  = (1 - lr wd) W - U (lr d)

This module is that flow; what touches an m x n matrix is a `Products`, of which each fast backend has one.
"""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ldadam.algorithm import LowRankState, adam_direction, change_basis, unbiased
from ldadam.backends.matrices import Chunk
from ldadam.subspace import RANGE_FINDER_ITERATIONS, cholesky_qr, orthonormalize, unit_columns


class Products(Protocol):
    """What touches an m x n matrix, and the r x n chain, for the B matrices of one chunk."""

    def correct(self, chunk: Chunk, basis: Tensor) -> tuple[list[Tensor], Tensor]:
        """A = G + E for each matrix, in the storage of E where that has the dtype, and U'A (B, r, n)."""
        ...

    def project(self, basis: Tensor, corrected: list[Tensor]) -> Tensor:
        """U'A (B, r, n) from U (B, m, r)."""
        ...

    def lift(self, corrected: list[Tensor], rows: Tensor) -> Tensor:
        """A Y (B, m, r) from Y' (B, r, n)."""
        ...

    def target_rows(self, chunk: Chunk, prev: LowRankState, projected: Tensor) -> Tensor:
        """Y' = rho m_hat + (1 - rho) U_minus'A (B, r, n), up to a scale of each row, which leaves U as it is."""
        ...

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """left right' (B, r, r), from two (B, r, l) tensors."""
        ...

    def advance_(self, chunk: Chunk, prev: LowRankState, basis: Tensor, low_rank_grad: Tensor) -> tuple[Tensor, Tensor]:
        """m and v in place, from a (B, r, n).

        Returns:
            [a + c m_half; -c m_minus] (B, 2r, n), or a where the basis was kept; and lr d (B, r, n). Both are zero for
            matrices whose step is refused.
        """
        ...

    def finish_(self, chunk: Chunk, corrected: list[Tensor], left: Tensor, right: Tensor, descent: Tensor) -> None:
        """E = A - left right and W = (1 - lr wd) W - U descent, in place; U is the first r columns of left."""
        ...


def step_chunk_(chunk: Chunk, products: Products) -> None:
    """Move the matrices of a chunk, and their state, by one step, in place."""
    prev = LowRankState(chunk.stack("basis"), chunk.stack("exp_avg"), chunk.stack("exp_avg_sq"), torch.zeros(()))
    corrected, low_rank_grad = products.correct(chunk, prev.basis)  # A, U_minus' A
    basis = left = prev.basis
    if chunk.kind.moves_subspace:
        basis = track_subspace(chunk, prev, corrected, low_rank_grad, products)  # U
        left = torch.cat([basis, prev.basis], dim=-1)
        low_rank_grad = products.project(basis, corrected)  # a
    right, descent = products.advance_(chunk, prev, basis, low_rank_grad)
    products.finish_(chunk, corrected, left, right, descent)
    chunk.unstack_("basis", basis)


def track_subspace(
    chunk: Chunk, prev: LowRankState, corrected: list[Tensor], projected: Tensor, products: Products
) -> Tensor:
    """U (B, m, r): one power iteration from the previous basis, or the range finder's from the random one."""
    rho, basis = chunk.hyper.rho, prev.basis
    exp_avg_hat = unbiased(prev.exp_avg, chunk.hyper.betas[0], chunk.step - 1)  # m_hat
    orth = orthonormalize if basis.dtype == torch.float64 else partial(cholesky_qr, inner=products.inner)
    for iteration in range(RANGE_FINDER_ITERATIONS if chunk.kind.is_first else 1):
        if iteration:
            projected = products.project(basis, corrected)
        rows = products.target_rows(chunk, prev, projected)  # Y'
        overlap = products.inner(exp_avg_hat, rows)  # m_hat Y
        columns = torch.baddbmm(products.lift(corrected, rows), basis, overlap, beta=1 - rho, alpha=rho)  # X
        basis = orth(columns, fallback=basis)
    return basis


def target_rows(chunk: Chunk, prev: LowRankState, projected: Tensor) -> Tensor:
    """`Products.target_rows` by the page's own functions."""
    exp_avg_hat = unbiased(prev.exp_avg, chunk.hyper.betas[0], chunk.step - 1)  # m_hat
    rows = chunk.hyper.rho * exp_avg_hat + (1 - chunk.hyper.rho) * projected  # Y'
    return unit_columns(rows.mT).mT


def advance_(chunk: Chunk, prev: LowRankState, basis: Tensor, low_rank_grad: Tensor) -> tuple[Tensor, Tensor]:
    """`Products.advance_` by the page's own functions."""
    (beta1, beta2), step = chunk.hyper.betas, chunk.step
    moves = chunk.kind.moves_subspace
    carried = change_basis(prev, basis, step=step, betas=(beta1, beta2)) if moves else prev  # m_half, v_half
    exp_avg = torch.lerp(carried.exp_avg, low_rank_grad, 1 - beta1)  # m
    exp_avg_sq = torch.lerp(carried.exp_avg_sq, low_rank_grad.square(), 1 - beta2)  # v
    direction = adam_direction(exp_avg, exp_avg_sq, step=step, betas=(beta1, beta2), eps=chunk.hyper.eps)  # d
    right = low_rank_grad
    if moves:
        ratio = beta1 / (1 - beta1)  # c
        right = torch.cat([low_rank_grad.add(carried.exp_avg, alpha=ratio), prev.exp_avg * -ratio], dim=-2)
    chunk.unstack_("exp_avg", exp_avg)
    chunk.unstack_("exp_avg_sq", exp_avg_sq)
    return accepted(chunk, right), accepted(chunk, direction * chunk.hyper.lr)


def accepted(chunk: Chunk, factor: Tensor) -> Tensor:
    """The factor, or zero for matrices whose step is refused."""
    return factor if chunk.accept is None else torch.where(chunk.accept, factor, 0)
