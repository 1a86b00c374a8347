"""Ways to get a basis: the published tracking and decompositions, and a range finder for the first step.

Every function maps a target matrix B (..., m, n) and a basis (..., m, r) to a new orthonormal basis (..., m, r). An
all-zero target says nothing about the subspace, so the given basis is returned.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# A full SVD of a matrix costs min(m, n) / r times the products of a step. Up to this side it takes milliseconds.
SVD_MAX_SIDE = 256

RANGE_FINDER_ITERATIONS = 3


def orthonormalize(columns: Tensor, *, fallback: Tensor) -> Tensor:
    """orth(X): Q of the QR decomposition, with the usual column order; `fallback` where X is all zero.

    Columns are scaled first. That leaves Q as it is, and keeps squares of huge and tiny entries representable.
    """
    largest = largest_of_columns(columns)
    basis = torch.linalg.qr(columns / nonzero(largest)).Q
    return torch.where(is_zero(largest), fallback, basis)


def unit_columns(matrix: Tensor) -> Tensor:
    """The matrix with each column divided by its largest absolute entry; zero columns stay zero."""
    return matrix / nonzero(largest_of_columns(matrix))


def largest_of_columns(matrix: Tensor) -> Tensor:
    """The largest absolute entry of each column: (..., m, r) to (..., 1, r)."""
    return matrix.abs().amax(dim=-2, keepdim=True)


def nonzero(scale: Tensor) -> Tensor:
    """The scale, with 1 for 0, so that one can divide by it."""
    return torch.where(scale > 0, scale, 1)


def is_zero(matrix: Tensor) -> Tensor:
    """Whether a matrix is all zero, as (..., 1, 1) bools, for masks."""
    return (matrix == 0).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)


def power_iteration(target: Tensor, basis: Tensor) -> Tensor:
    """U = orth(B (B' U_minus)): one step of block power iteration, started from the previous basis."""
    return orthonormalize(target @ unit_columns(target.mT @ basis), fallback=basis)


def top_singular_vectors(target: Tensor, basis: Tensor) -> Tensor:
    """The r leading left singular vectors of B. Non-finite entries count as zero: LAPACK refuses them."""
    left = torch.linalg.svd(_finite(target), full_matrices=False).U
    return torch.where(is_zero(target), basis, left[..., : basis.shape[-1]])


def approximate_singular_vectors(target: Tensor, basis: Tensor) -> Tensor:
    """The r leading left singular vectors of B by `torch.svd_lowrank`, which draws from torch's generator."""
    left = torch.svd_lowrank(_finite(target), q=basis.shape[-1])[0]
    return torch.where(is_zero(target), basis, left)


def range_finder(target: Tensor, basis: Tensor) -> Tensor:
    """The r leading left singular vectors of B, approximately, by a few power iterations from a random basis.

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4, without oversampling.
    """
    for _ in range(RANGE_FINDER_ITERATIONS):
        basis = power_iteration(target, basis)
    return basis


def random_basis(rows: int, rank: int) -> Tensor:
    """A fixed orthonormal (rows, rank) float32 matrix on the CPU: where a matrix's subspace starts from.

    It depends on the shape alone, so that neither the device, nor the order of parameters, nor sharding changes a run.
    """
    return _random_basis(rows, rank).clone()


@lru_cache(maxsize=8)
def _random_basis(rows: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(rows, rank, generator=generator)).Q


def _finite(matrix: Tensor) -> Tensor:
    return torch.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0)


PROJ_METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "power_iteration": power_iteration,
    "svd": top_singular_vectors,
    "svd_lowrank": approximate_singular_vectors,
}


def first_basis(proj_method: str, *, shorter_side: int) -> Callable[[Tensor, Tensor], Tensor]:
    """How the first basis of a matrix is found: the published SVD for small matrices, else the range finder."""
    if proj_method == "power_iteration":
        return top_singular_vectors if shorter_side <= SVD_MAX_SIDE else range_finder
    return PROJ_METHODS[proj_method]


# What a previous basis weighs against columns scaled to length one: enough to complete columns that are zero or
# dependent, and of the order of float32's rounding otherwise.
COMPLETION = 1e-6


def cholesky_qr(
    columns: Tensor, *, fallback: Tensor, inner: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a @ b.mT
) -> Tensor:
    """orth(X) from r x r Cholesky factors, up to column signs and rounding: batched, without host synchronisation.

    The first Gram matrix is taken in float64, where a condition number of 1e7 can be squared (a shift of one rounding
    error keeps its factor finite), and a second pass removes what the first one's rounding left; `inner` is how it
    multiplies vectors, (r, l) and (r, l) to (r, r). Columns that X does not determine continue those of `fallback`, an
    orthonormal basis; all-zero X returns it.

    Source: Yamamoto et al. (2015), "Roundoff error analysis of the CholeskyQR2 algorithm"; columns are scaled first.
    """
    largest = largest_of_columns(columns)
    scaled = columns / nonzero(largest)
    scaled = scaled / scaled.norm(dim=-2, keepdim=True).clamp_min(1.0) + COMPLETION * fallback
    gram = scaled.mT.double() @ scaled.double()
    shift = torch.finfo(torch.float64).eps * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    first = _times_inverse_factor(scaled, gram=gram + shift * _identity_like(gram))
    basis = _times_inverse_factor(first, gram=inner(first.mT, first.mT))
    return torch.where(is_zero(largest), fallback, basis)


def _times_inverse_factor(columns: Tensor, *, gram: Tensor) -> Tensor:
    """X R^-1 with R'R = X'X, from the Gram matrix X'X."""
    lower = torch.linalg.cholesky_ex(gram).L
    inverse = torch.linalg.solve_triangular(lower, _identity_like(gram), upper=False)
    return columns @ inverse.mT.to(columns.dtype)


def _identity_like(square: Tensor) -> Tensor:
    return torch.eye(square.shape[-1], dtype=square.dtype, device=square.device).expand_as(square)
