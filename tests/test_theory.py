"""Theory, checked in seconds: rates of convergence, and where there is none. The long runs are benchmarks/theory.py."""

import json
import re

import pytest
import torch

import theory
from theory_problems import hidden_direction, least_squares, robust_regression, student
from tolerances import TOLERANCES


def slope_of(name, subject, horizons):
    """The mean slope over the replicates, and the end of its 95 % interval towards zero."""
    torch.set_num_threads(1)
    experiment = theory.EXPERIMENTS[name]
    mean, half = theory.slope({steps: theory.measure(experiment, subject, steps) for steps in horizons})
    return mean, mean + half


# The theorems bound from above: a slope may be steeper, not flatter. What is left to a bound is a finite T, where the
# start weighs more, and the noise of eight replicates.


def test_gradients_of_a_smooth_nonconvex_function_fall_as_the_root_of_the_steps():
    mean, end = slope_of("nonconvex", theory.ldadamw(), (256, 1024))
    assert end <= -0.45 and mean >= -0.75


def test_gradients_do_not_fall_where_the_learning_rate_stays():
    mean, _ = slope_of("nonconvex", theory.ldadamw(lr=0.05), (256, 512))
    assert mean >= -0.3


def test_the_loss_of_a_pl_function_falls_as_log_t_over_t():
    _, end = slope_of("pl", theory.ldadamw(), (128, 512))
    assert end <= -0.9


def test_the_loss_of_a_pl_function_does_not_fall_where_the_learning_rate_stays():
    mean, _ = slope_of("pl", theory.ldadamw(lr=0.05), (64, 256))
    assert mean >= -0.4


def moved(options, *, rotated=True):
    """How far each replicate has come along the hidden direction, of a way of one, after 100 steps of 0.02."""
    torch.set_num_threads(1)
    problem = hidden_direction(rotated=rotated)
    outcome = theory.train(problem, theory.ldadamw(**options), num_steps=100, lr=0.02)
    return 1 - (2 * outcome.gap).sqrt()


@pytest.mark.parametrize("options", [theory.BEST, {"rho": 0.0}], ids=["best approximation", "power iteration"])
def test_without_error_feedback_a_direction_that_is_never_largest_never_moves(options):
    assert moved({**options, "error_feedback": False}).abs().max() <= TOLERANCES["direction outside of the subspace"]


@pytest.mark.parametrize("options", [theory.BEST, {}], ids=["best approximation", "default"])
def test_with_error_feedback_it_moves(options):
    assert moved(options).min() >= 0.5


def test_a_power_iteration_never_leaves_a_subspace_that_is_exactly_invariant():
    """Error feedback does not help there, since no iteration looks at the buffer; a decomposition does."""
    assert (moved({}, rotated=False) == 0).all()
    assert moved(theory.BEST, rotated=False).min() >= 0.5


def test_student_noise_has_a_median_but_no_variance():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([student(generator) for _ in range(100)]).abs() / 0.1
    # P(|t| <= 0.873) = 1/2 and P(|t| > 100) = 7.5e-4, with 1.5 degrees of freedom.
    assert 0.49 <= (draws <= 0.873).double().mean() <= 0.51
    assert 6e-4 <= (draws > 100).double().mean() <= 9e-4


@pytest.mark.parametrize("problem", [robust_regression(), least_squares(8, student), hidden_direction()])
def test_the_gradients_are_those_of_the_functions(problem):
    weight = torch.randn(theory.SHAPE, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(problem.gap(weight).sum(), weight)
    torch.testing.assert_close(problem.gradient(weight.detach()), expected)


def test_the_numbers_of_the_page_are_those_of_the_runs():
    page, found = theory.PAGE.read_text(), json.loads(theory.RESULTS.read_text())
    assert theory.rendered(page, found) == page
    assert set(re.findall(r"<!-- theory: (\w+) -->", page)) == set(theory.EXPERIMENTS)
    runs = [run for of_experiment in found["experiments"].values() for run in of_experiment.values()]
    assert not any(run["commit"].endswith("-dirty") for run in runs)
