"""The page, rearranged so that a matrix is read by six products and no other m x n tensor is made.

With U_minus' U_minus = I, everything but the weights and the buffer follows from three small products with A:

    Y' = U_minus' B = rho m_hat + (1 - rho) U_minus' A
    X  = B Y        = rho U_minus (m_hat Y) + (1 - rho) A Y        U = orth(X)
    a  = U' A

and the buffer and the weights from two updates of low rank, in place:

    E  = A - U (a + c m_half) - U_minus (-c m_minus)               c = beta1 / (1 - beta1)
    W  = (1 - lr wd) W - U (lr d)

With `scaled_residual`, G is read twice more, for g = U'G and |G_j|, and for W: as R = phi (G - U g),

    W  = (1 - lr wd) W - U (lr d - lr phi g) - lr phi G

This module is that flow; what touches an m x n matrix is a `Products`, of which each fast backend has one.
"""

from typing import Protocol

import torch
from torch import Tensor

from ldadam.algorithm import LowRankState, adam_direction, change_basis, residual_scale, subspace_target, unbiased
from ldadam.backends.matrices import Chunk
from ldadam.backends.partial import Partial, Shards, Steps
from ldadam.subspace import RANGE_FINDER_ITERATIONS, nonzero, unit_columns

# What E loses in U and in U_minus, and what W loses in U.
Descent = tuple[list[Tensor], Tensor]


class Products(Protocol):
    """What touches an m x n matrix, and the r x n chain, for the B matrices of one chunk."""

    chunk: Chunk

    def correct(self, basis: Tensor) -> Tensor:
        """A = G + E for each matrix, which the other products read, and U'A (B, r, n)."""
        ...

    def corrected_grads(self) -> Tensor:
        """A (B, m, n) itself, for bases that come from a decomposition."""
        ...

    def project(self, basis: Tensor) -> Tensor:
        """U'A (B, r, n) from U (B, m, r)."""
        ...

    def lift(self, rows: Tensor) -> Tensor:
        """A Y (B, m, r) from Y' (B, r, n)."""
        ...

    def target_rows(self, prev: LowRankState, projected: Tensor) -> Tensor:
        """Y' = rho m_hat + (1 - rho) U_minus'A (B, r, n), up to a scale of each row, which leaves U as it is."""
        ...

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """left right' (B, r, r), from two (B, r, l) tensors."""
        ...

    def orthonormalize(self, columns: Tensor, *, fallback: Tensor) -> Tensor:
        """U = orth(X) (B, m, r), and the fallback where X is all zero."""
        ...

    def advance_(self, prev: LowRankState, change: Tensor | None, low_rank_grad: Tensor) -> Descent:
        """m and v in place, from Q (B, r, r), or None where the basis was kept, and a (B, r, n).

        Returns:
            What U and U_minus are multiplied by in E, [a + c m_half, -c m_minus], each (B, r, n), or [a] where the
            basis was kept, in the form that `finish_` of the same object takes; and lr d (B, r, n). All are zero for
            matrices whose step is refused.
        """
        ...

    def see_grad(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """U'G (B, r, n) and the squared length of each column of G (B, 1, n); G is zero where its step is refused."""
        ...

    def finish_(
        self, bases: list[Tensor], lost: list[Tensor], descent: Tensor, *, grad_scale: Tensor | None = None
    ) -> None:
        """E = A - [U, U_minus] lost and W = (1 - lr wd) W - U descent, in place; `bases` is U, U_minus, or U alone.

        With `grad_scale` (B, 1, n), W loses so many times each column of G as well.
        """
        ...


def step_chunk_(products: Products) -> Steps:
    """Move the matrices of a chunk, and their state, by one step, in place."""
    chunk = products.chunk
    prev = LowRankState(chunk.stack("basis"), chunk.stack("exp_avg"), chunk.stack("exp_avg_sq"), torch.zeros(()))
    (low_rank_grad,) = yield [Partial(products.correct(prev.basis), "m", "U_minus'A", of_gradient=True)]
    bases, change = [prev.basis], None
    if chunk.kind.moves_subspace:
        basis = yield from track_subspace(products, prev, low_rank_grad)  # U
        bases.insert(0, basis)
        low_rank_grad, change = yield [
            Partial(products.project(basis), "m", "U'A", of_gradient=True),  # a
            Partial(products.inner(basis.mT, prev.basis.mT), "m", "U'U_minus"),  # Q
        ]
    lost, descent = products.advance_(prev, change, low_rank_grad)
    grad_scale = None
    if chunk.hyper.scaled_residual:
        descent, grad_scale = yield from add_residual(products, bases[0], descent)
    products.finish_(bases, lost, descent, grad_scale=grad_scale)
    if chunk.kind.moves_subspace:
        chunk.unstack_("basis", bases[0])


def track_subspace(products: Products, prev: LowRankState, projected: Tensor) -> Steps:
    """U (B, m, r): one power iteration from the previous basis, or the range finder's from the random one."""
    chunk, basis = products.chunk, prev.basis
    rho, shards = chunk.hyper.rho, chunk.kind.shards
    if chunk.kind.decomposition is not None:
        return (yield from shared_decomposition(products, prev, shards))
    for iteration in range(RANGE_FINDER_ITERATIONS if chunk.kind.is_first else 1):
        if iteration:
            (projected,) = yield [Partial(products.project(basis), "m", "U'A", of_gradient=True)]
        if shards is None or not shards.n:
            rows = products.target_rows(prev, projected)  # Y'
        else:
            rows = yield from shared_target_rows(chunk, prev, projected)
        lifted, overlap = yield [
            Partial(products.lift(rows), "n", "A Y", of_gradient=True),
            Partial(products.inner(prev.exp_avg, rows), "n", "m_minus Y"),
        ]
        overlap = unbiased(overlap, chunk.hyper.betas[0], chunk.step - 1)  # m_hat Y
        columns = torch.baddbmm(lifted, basis, overlap, beta=1 - rho, alpha=rho)  # X
        if shards is None or not shards.m:
            basis = products.orthonormalize(columns, fallback=basis)
        else:
            basis = yield from shared_orthonormalize(products, columns, fallback=basis, shards=shards)
    return basis


def shared_target_rows(chunk: Chunk, prev: LowRankState, projected: Tensor) -> Steps:
    """Y' (B, r, n) where ranks hold blocks of n: the scale of a row is that of the whole row."""
    rows = subspace_target_rows(chunk, prev, projected)
    largest = rows.abs().amax(dim=-1, keepdim=True) if rows.numel() else rows.new_zeros(*rows.shape[:-1], 1)
    (largest,) = yield [Partial(largest, "n", "largest of Y", op="max")]
    return rows / nonzero(largest)


def shared_orthonormalize(products: Products, columns: Tensor, *, fallback: Tensor, shards: Shards) -> Steps:
    """U = orth(X) (B, m, r) where ranks hold blocks of m: each orthonormalizes the whole, and keeps its block."""
    whole = yield [
        Partial(shards.embed_rows(columns), "m", "X"),
        Partial(shards.embed_rows(fallback), "m", "U_minus"),
    ]
    return products.orthonormalize(whole[0], fallback=whole[1])[:, slice(*shards.rows)]


def shared_decomposition(products: Products, prev: LowRankState, shards: Shards | None) -> Steps:
    """U (B, m, r) of a decomposition of B where ranks hold blocks of it: each decomposes the whole."""
    chunk = products.chunk
    assert shards is not None and chunk.kind.decomposition is not None
    beta1, rho = chunk.hyper.betas[0], chunk.hyper.rho
    target = subspace_target(products.corrected_grads(), prev, step=chunk.step, beta1=beta1, rho=rho)  # B
    wide, basis = yield [
        Partial(shards.embed_rows(shards.embed_cols(target)), "m", "B", of_gradient=True),
        Partial(shards.embed_rows(prev.basis), "m", "U_minus"),
    ]
    (whole,) = yield [Partial(wide, "n", "B")]
    return chunk.kind.decomposition(whole, basis)[:, slice(*shards.rows)]


def add_residual(products: Products, basis: Tensor, descent: Tensor) -> Steps:
    """lr (d - phi g) and lr phi, from lr d: what W then loses in U, and of each column of G."""
    seen, squares = products.see_grad(basis)
    seen, squares = yield [Partial(seen, "m", "U'G"), Partial(squares, "m", "|G_j|^2")]
    scale = residual_scale(descent, seen, squares.sqrt())
    return descent - scale * seen, scale


def target_rows(chunk: Chunk, prev: LowRankState, projected: Tensor) -> Tensor:
    """`Products.target_rows` by the page's own functions."""
    return unit_columns(subspace_target_rows(chunk, prev, projected).mT).mT


def subspace_target_rows(chunk: Chunk, prev: LowRankState, projected: Tensor) -> Tensor:
    """Y' = rho m_hat + (1 - rho) U_minus'A (B, r, n)."""
    exp_avg_hat = unbiased(prev.exp_avg, chunk.hyper.betas[0], chunk.step - 1)  # m_hat
    return chunk.hyper.rho * exp_avg_hat + (1 - chunk.hyper.rho) * projected


def advance_(chunk: Chunk, prev: LowRankState, change: Tensor | None, low_rank_grad: Tensor) -> Descent:
    """`Products.advance_` by the page's own functions."""
    (beta1, beta2), step = chunk.hyper.betas, chunk.step
    carried = prev if change is None else change_basis(prev, change, step=step, betas=(beta1, beta2))  # m_half, v_half
    exp_avg = torch.lerp(carried.exp_avg, low_rank_grad, 1 - beta1)  # m
    exp_avg_sq = torch.lerp(carried.exp_avg_sq, low_rank_grad.square(), 1 - beta2)  # v
    direction = adam_direction(exp_avg, exp_avg_sq, step=step, betas=(beta1, beta2), eps=chunk.hyper.eps)  # d
    lost = [low_rank_grad]
    if change is not None:
        ratio = beta1 / (1 - beta1)  # c
        lost = [low_rank_grad.add(carried.exp_avg, alpha=ratio), prev.exp_avg * -ratio]
    chunk.unstack_("exp_avg", exp_avg)
    chunk.unstack_("exp_avg_sq", exp_avg_sq)
    return [accepted(chunk, factor) for factor in lost], accepted(chunk, direction * chunk.hyper.lr)


def accepted(chunk: Chunk, factor: Tensor) -> Tensor:
    """The factor, or zero for matrices whose step is refused."""
    return factor if chunk.accept is None else torch.where(chunk.accept, factor, 0)
