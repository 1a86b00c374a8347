"""Ways to get a basis: orthonormal whatever comes in, and capturing what they should."""

import pytest
import torch

from builders import distance, gradients, normal
from ldadam import subspace
from ldadam.subspace import (
    PROJ_METHODS,
    SVD_MAX_SIDE,
    first_basis,
    orthonormalize,
    power_iteration,
    random_basis,
    range_finder,
    top_singular_vectors,
)
from tolerances import TOLERANCES

M, N, RANK = 40, 60, 6
FALLBACK = random_basis(M, RANK)


def assert_orthonormal(basis: torch.Tensor) -> None:
    gram = basis.mT @ basis
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype).expand_as(gram)
    assert distance(gram, identity) <= TOLERANCES["float32 orthonormal"]


def captured(basis: torch.Tensor, target: torch.Tensor) -> float:
    return ((basis.mT @ target).norm() / target.norm()).item()


def hard_inputs() -> dict[str, torch.Tensor]:
    columns = normal(M, RANK)
    mixed = columns * torch.logspace(-30, 30, RANK)
    twice = columns.clone()
    twice[:, 3:] = columns[:, :3]
    some_zero = columns.clone()
    some_zero[:, ::2] = 0
    single = torch.zeros(M, RANK)
    single[5, 2] = 1e-30
    return {
        "ordinary": columns,
        "huge": columns * 1e30,
        "tiny": columns * 1e-30,
        "huge and tiny columns": mixed,
        "rank-deficient": twice,
        "some zero columns": some_zero,
        "a single tiny entry": single,
        "all zero": torch.zeros(M, RANK),
    }


@pytest.mark.parametrize("case", hard_inputs())
def test_orthonormalize_gives_orthonormal_columns_for(case):
    assert_orthonormal(orthonormalize(hard_inputs()[case], fallback=FALLBACK))


@pytest.mark.parametrize("case", ["ordinary", "huge", "tiny", "huge and tiny columns"])
def test_orthonormalize_spans_the_columns_for(case):
    columns = hard_inputs()[case].double()
    basis = orthonormalize(columns.float(), fallback=FALLBACK).double()
    unit = columns / columns.norm(dim=0)
    assert (unit - basis @ (basis.mT @ unit)).norm() <= TOLERANCES["float32 step"]


def test_orthonormalize_is_qr_up_to_signs():
    columns = normal(M, RANK, dtype=torch.float64)
    ours = orthonormalize(columns, fallback=FALLBACK.double())
    expected = torch.linalg.qr(columns).Q
    signs = (ours * expected).sum(0).sign()
    assert distance(ours * signs, expected) <= TOLERANCES["float64 formula"]


def test_orthonormalize_returns_the_fallback_for_zero_matrices_of_a_stack():
    columns = torch.stack([normal(M, RANK), torch.zeros(M, RANK)])
    fallback = FALLBACK.expand(2, M, RANK)
    bases = orthonormalize(columns, fallback=fallback)
    assert torch.equal(bases[1], FALLBACK)
    assert torch.equal(bases[0], orthonormalize(columns[0], fallback=FALLBACK))


@pytest.mark.parametrize("find", [power_iteration, top_singular_vectors, range_finder, *PROJ_METHODS.values()])
def test_an_all_zero_target_keeps_the_basis(find):
    assert torch.equal(find(torch.zeros(M, N), FALLBACK), FALLBACK)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("find", [power_iteration, top_singular_vectors, range_finder])
def test_the_scale_of_the_target_does_not_matter(find, scale):
    target = gradients((M, N), 1)[0]
    basis = find(target * scale, FALLBACK)
    assert_orthonormal(basis)
    assert captured(basis, target) == pytest.approx(captured(find(target, FALLBACK), target), rel=1e-4)


def test_the_range_finder_captures_what_svd_captures():
    left, right = torch.linalg.qr(normal(M, M)).Q, torch.linalg.qr(normal(N, M, seed=1)).Q
    target = left @ torch.diag(0.75 ** torch.arange(M)) @ right.mT
    ratio = captured(range_finder(target, FALLBACK), target) / captured(top_singular_vectors(target, FALLBACK), target)
    assert TOLERANCES["range finder captures"] <= ratio <= 1 + TOLERANCES["float32 step"]


def test_one_power_iteration_captures_more_than_the_basis_it_started_from():
    target = gradients((M, N), 1)[0]
    assert captured(power_iteration(target, FALLBACK), target) > captured(FALLBACK, target)


def test_top_singular_vectors_capture_the_largest_singular_values():
    target = normal(M, N, dtype=torch.float64)
    values = torch.linalg.svdvals(target)
    best = (values[:RANK].norm() / values.norm()).item()
    assert captured(top_singular_vectors(target, FALLBACK.double()), target) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", PROJ_METHODS)
def test_a_first_gradient_that_is_not_finite_does_not_crash(method, bad):
    target = normal(M, N)
    target[3, 5] = bad
    first = first_basis(method, shorter_side=M)(target, FALLBACK)
    assert first.shape == FALLBACK.shape
    assert PROJ_METHODS[method](target, FALLBACK).shape == FALLBACK.shape


def test_the_random_basis_depends_on_the_shape_alone():
    torch.manual_seed(1)
    first = random_basis(33, 5)
    torch.randn(7)
    random_basis(12, 5)
    state = torch.get_rng_state()
    subspace._random_basis.cache_clear()
    assert torch.equal(random_basis(33, 5), first)
    assert torch.equal(torch.get_rng_state(), state), "drawing it moved torch's generator"
    assert_orthonormal(first)


def test_a_caller_that_writes_into_its_random_basis_harms_nobody():
    expected = random_basis(33, 5).clone()
    random_basis(33, 5).zero_()
    assert torch.equal(random_basis(33, 5), expected)


def test_small_matrices_start_from_svd_and_large_ones_from_the_range_finder():
    assert first_basis("power_iteration", shorter_side=SVD_MAX_SIDE) is top_singular_vectors
    assert first_basis("power_iteration", shorter_side=SVD_MAX_SIDE + 1) is range_finder
    assert first_basis("svd", shorter_side=10 * SVD_MAX_SIDE) is top_singular_vectors
