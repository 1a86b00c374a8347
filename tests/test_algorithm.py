"""The laws of the page, which catch what two implementations may share."""

import pytest
import torch

from builders import SHAPES, distance, gradients, normal, parameter
from ldadam import LDAdamW
from ldadam.algorithm import (
    RESIDUAL_CAP,
    LowRankState,
    change_basis,
    descend,
    ldadam_step,
    scaled_residual,
)
from ldadam.subspace import power_iteration, random_basis, top_singular_vectors
from tolerances import TOLERANCES

BETAS = (0.908, 0.99)
OPTIONS = {"betas": BETAS, "eps": 1e-8, "rho": 0.908}
NUM_STEPS = 30


def first_state(m: int, n: int, rank: int) -> LowRankState:
    moment = torch.zeros(rank, n, dtype=torch.float64)
    basis = torch.linalg.qr(random_basis(m, rank).double()).Q
    return LowRankState(basis, moment, moment, torch.zeros(m, n, dtype=torch.float64))


def states_of_a_run(m: int, n: int, rank: int, *, start: LowRankState | None = None, **options) -> list[LowRankState]:
    """The state before the first step and after each."""
    states = [start or first_state(m, n, rank)]
    for step, grad in enumerate(gradients((m, n), NUM_STEPS, dtype=torch.float64), start=1):
        first = {"next_basis": top_singular_vectors} if step == 1 else {}
        _, state = ldadam_step(grad, states[-1], step=step, **{**OPTIONS, **first, **options})
        states.append(state)
    return states


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("rank", [1, 5])
def test_no_gradient_is_lost(m, n, rank):
    """Sum of gradients = sum of applied momenta + what the buffer and the last momentum still hold."""
    states = states_of_a_run(m, n, rank)
    sum_of_grads = gradients((m, n), NUM_STEPS, dtype=torch.float64).sum(0)
    sum_of_applied = sum(state.basis @ state.exp_avg for state in states[:-1])
    last = states[-1]
    held = last.error_buffer + last.basis @ last.exp_avg / (1 - BETAS[0])
    assert distance(sum_of_applied + held, sum_of_grads) <= TOLERANCES["float64 conservation"]


@pytest.mark.parametrize("next_basis", [power_iteration, top_singular_vectors, None, lambda target, basis: basis])
def test_no_gradient_is_lost_however_the_basis_is_found(next_basis):
    states = states_of_a_run(12, 20, 3, next_basis=next_basis)
    last = states[-1]
    held = last.error_buffer + last.basis @ last.exp_avg / (1 - BETAS[0])
    total = sum(state.basis @ state.exp_avg for state in states[:-1]) + held
    sum_of_grads = gradients((12, 20), NUM_STEPS, dtype=torch.float64).sum(0)
    assert distance(total, sum_of_grads) <= TOLERANCES["float64 conservation"]


def test_at_full_rank_the_buffer_stays_empty_and_the_momentum_is_adams():
    m, n = 9, 14
    momentum = torch.zeros(m, n, dtype=torch.float64)
    grads = gradients((m, n), NUM_STEPS, dtype=torch.float64)
    for grad, state in zip(grads, states_of_a_run(m, n, rank=m)[1:], strict=True):
        momentum = BETAS[0] * momentum + (1 - BETAS[0]) * grad
        assert state.error_buffer.norm() <= TOLERANCES["float64 conservation"] * grad.norm()
        assert distance(state.basis @ state.exp_avg, momentum) <= TOLERANCES["float64 conservation"]


def test_a_basis_held_at_the_identity_is_torchs_adamw():
    m, n = 9, 14
    param = parameter(m, n, dtype=torch.float64)
    adamw = torch.optim.AdamW([param], lr=0.01, betas=BETAS, eps=1e-8, weight_decay=0.1)
    start = first_state(m, n, rank=m)._replace(basis=torch.eye(m, dtype=torch.float64))
    weight, state = param.detach().clone(), start
    for step, grad in enumerate(gradients((m, n), NUM_STEPS, dtype=torch.float64), start=1):
        param.grad = grad
        adamw.step()
        update, state = ldadam_step(grad, state, step=step, next_basis=lambda _, basis: basis, **OPTIONS)
        weight = descend(weight, update, lr=0.01, weight_decay=0.1)
        assert distance(weight, param) <= TOLERANCES["float64 formula"]


def test_signs_of_basis_columns_change_nothing():
    m, n, rank, step = 12, 20, 4, 9
    prev = states_of_a_run(m, n, rank)[step - 1]
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    flipped = prev._replace(basis=prev.basis * signs, exp_avg=prev.exp_avg * signs[:, None])
    grad = normal(m, n, dtype=torch.float64)
    update, new = ldadam_step(grad, prev, step=step, **OPTIONS)
    other_update, other = ldadam_step(grad, flipped, step=step, **OPTIONS)
    assert distance(other_update, update) <= TOLERANCES["float64 formula"]
    assert distance(other.error_buffer, new.error_buffer) <= TOLERANCES["float64 formula"]
    assert distance(other.exp_avg_sq, new.exp_avg_sq) <= TOLERANCES["float64 formula"]


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_basis_stays_orthonormal(m, n):
    for state in states_of_a_run(m, n, rank=6)[1:]:
        gram = state.basis.mT @ state.basis
        assert distance(gram, torch.eye(6, dtype=torch.float64)) <= TOLERANCES["float64 orthonormal"]


def test_a_stack_of_matrices_equals_one_at_a_time():
    batch, m, n, rank, step = 4, 12, 20, 3, 7
    prevs = [
        LowRankState(
            torch.linalg.qr(normal(m, rank, seed=i, dtype=torch.float64)).Q,
            normal(rank, n, seed=i + 10, dtype=torch.float64),
            normal(rank, n, seed=i + 20, dtype=torch.float64).square(),
            normal(m, n, seed=i + 30, dtype=torch.float64),
        )
        for i in range(batch)
    ]
    grad = normal(batch, m, n, dtype=torch.float64)
    grad[1] = 0.0
    stacked = LowRankState(*(torch.stack(values) for values in zip(*prevs, strict=True)))
    update, new = ldadam_step(grad, stacked, step=step, **OPTIONS)
    for i, prev in enumerate(prevs):
        single_update, single = ldadam_step(grad[i], prev, step=step, **OPTIONS)
        assert distance(update[i], single_update) <= TOLERANCES["float64 formula"]
        for batched, alone in zip(new, single, strict=True):
            assert distance(batched[i], alone) <= TOLERANCES["float64 formula"]


def test_the_residual_is_what_the_subspace_misses_at_the_scale_of_what_it_sees():
    grad, direction = normal(10, 16, dtype=torch.float64), normal(4, 16, seed=1, dtype=torch.float64)
    grad[:, 3] = 0
    basis = torch.linalg.qr(normal(10, 4, seed=2, dtype=torch.float64)).Q
    residual, seen = scaled_residual(grad, basis, direction), basis.mT @ grad
    missed = grad - basis @ seen
    assert distance(basis.mT @ residual + seen, seen) <= TOLERANCES["float64 formula"]
    assert not residual[:, 3].any()
    others = [column for column in range(16) if column != 3]
    found, expected = (one.norm(dim=0)[others] for one in (residual, missed))
    scale = direction.norm(dim=0)[others] / seen.norm(dim=0)[others]
    assert distance(found, scale * expected) <= TOLERANCES["float64 formula"]


def test_the_residual_of_a_column_that_is_hardly_seen_is_bounded():
    basis = torch.eye(10, 4, dtype=torch.float64)
    grad, direction = torch.ones(10, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    grad[:4] = torch.tensor([1.0, 1e-6, 0.0])
    lengths = scaled_residual(grad, basis, direction).norm(dim=0)
    assert lengths[0] == pytest.approx(6**0.5)
    assert (lengths[1:] <= RESIDUAL_CAP * 2).all()
    assert (lengths[1:] >= 0.99 * RESIDUAL_CAP * 2).all()


def test_with_the_residual_a_step_leaves_the_same_state():
    state = states_of_a_run(12, 20, 3)[-1]
    grad = normal(12, 20, dtype=torch.float64)
    plain, expected = ldadam_step(grad, state, step=NUM_STEPS + 1, **OPTIONS)
    update, found = ldadam_step(grad, state, step=NUM_STEPS + 1, **OPTIONS, adds_residual=True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    direction = expected.basis.mT @ plain
    assert distance(update - plain, scaled_residual(grad, expected.basis, direction)) <= TOLERANCES["float64 formula"]


def test_keeping_the_basis_transports_nothing():
    """`next_basis=None`: plain Adam on the projected gradient, in the coordinates of the old basis."""
    m, n, rank, step = 12, 20, 3, 7
    prev = states_of_a_run(m, n, rank)[step - 1]
    grad = normal(m, n, dtype=torch.float64)
    _, new = ldadam_step(grad, prev, step=step, next_basis=None, **OPTIONS)
    low_rank_grad = prev.basis.mT @ (grad + prev.error_buffer)
    assert torch.equal(new.basis, prev.basis)
    assert torch.equal(new.exp_avg, BETAS[0] * prev.exp_avg + (1 - BETAS[0]) * low_rank_grad)
    assert torch.equal(new.exp_avg_sq, BETAS[1] * prev.exp_avg_sq + (1 - BETAS[1]) * low_rank_grad.square())
    assert (
        distance(new.error_buffer, grad + prev.error_buffer - prev.basis @ low_rank_grad)
        <= (TOLERANCES["float64 formula"])
    )


def test_the_optimizer_keeps_the_basis_within_an_interval_and_moves_it_after():
    param = parameter(12, 20, dtype=torch.float64)
    optimizer = LDAdamW([param], rank=3, update_interval=3)
    bases = []
    for grad in gradients((12, 20), 7, dtype=torch.float64):
        param.grad = grad
        optimizer.step()
        bases.append(optimizer.state[param]["basis"].clone())
    moved = [not torch.equal(bases[i], bases[i - 1]) for i in range(1, 7)]
    assert moved == [False, False, True, False, False, True]


def test_transport_within_one_basis_keeps_the_moments():
    """With Q = I nothing is rotated: v_half = v, where v is at least the square of the mean."""
    prev = states_of_a_run(12, 20, 3)[6]
    carried = change_basis(prev, prev.basis.mT @ prev.basis, step=7, betas=BETAS)
    assert distance(carried.exp_avg, prev.exp_avg) <= TOLERANCES["float64 formula"]
    assert distance(carried.exp_avg_sq, prev.exp_avg_sq) <= TOLERANCES["float64 formula"]


def test_the_transported_second_moment_is_never_negative():
    """Where the estimated variance is negative, its absolute value counts."""
    basis = torch.eye(3, dtype=torch.float64)
    mean = torch.ones(3, 2, dtype=torch.float64)
    prev = LowRankState(basis, mean, torch.zeros(3, 2, dtype=torch.float64), torch.zeros(()))
    rotated = torch.linalg.qr(normal(3, 3, dtype=torch.float64)).Q
    carried = change_basis(prev, rotated.mT @ prev.basis, step=1000, betas=(0.0, 0.0))
    change = rotated.mT
    expected = (change @ mean).square() - change.square() @ mean.square()
    assert (expected < 0).any(), "the case does not exercise the guard"
    assert distance(carried.exp_avg_sq, expected.abs()) <= TOLERANCES["float64 formula"]


def test_the_page_changes_nothing_it_is_given():
    prev = states_of_a_run(12, 20, 3)[4]
    grad = normal(12, 20, dtype=torch.float64)
    before = [tensor.clone() for tensor in (grad, *prev)]
    ldadam_step(grad, prev, step=5, **OPTIONS)
    assert all(torch.equal(old, now) for old, now in zip(before, (grad, *prev), strict=True))


def test_the_step_may_be_a_tensor():
    prev = states_of_a_run(12, 20, 3)[4]
    grad = normal(12, 20, dtype=torch.float64)
    by_number, _ = ldadam_step(grad, prev, step=5, **OPTIONS)
    by_tensor, _ = ldadam_step(grad, prev, step=torch.tensor(5.0, dtype=torch.float64), **OPTIONS)
    assert distance(by_tensor, by_number) <= TOLERANCES["float64 formula"]
