"""A backend has a speed only if it does what the page does: three steps of both, on small weights of the same kinds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldadam.bench.models import Model, Shape
from ldadam.bench.subjects import Stepper, ldadamw, options_of
from ldadam.bench.weights import fill_gradients_, make_weights
from ldadam.peers import Weights

# Distance relative to the norm, after a few steps. Both do the same sums in another order; differences pass through
# the basis, which amplifies them by the inverse of its spectral gaps, and bfloat16 rounds A and the factors to 2^-9.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}

NUM_STEPS = 3

# Above this, weights are scaled down; it is above the side up to which the first basis comes from an SVD.
LONGEST_SHORTER_SIDE = 320

# So that Adam's direction is smooth: with a tiny eps the first step is a sign, which rounding of a gradient entry near
# zero turns around.
EPS = 0.1


@dataclass(frozen=True)
class Equality:
    """How far a backend is from the page, in the worst tensor, and how far it may be."""

    backend: str
    distance: float
    tolerance: float
    worst: str

    @property
    def holds(self) -> bool:
        """Whether the speed of this backend may be reported; not for a NaN."""
        return self.distance <= self.tolerance


def check_equality(backend: str, model: Model, rank: int, *, device: torch.device, dtype: torch.dtype) -> Equality:
    """Compare `backend` with the page on small weights of the model's kinds."""
    small = scaled_down(model, rank)
    fast_weights, page_weights = (make_weights(small, device=device, dtype=dtype) for _ in range(2))
    fast = _take_steps(ldadamw(fast_weights, rank, backend=backend, lr=1.0, eps=EPS), fast_weights)
    of_page = {**options_of(backend), "backend": "eager"}
    page = _take_steps(ldadamw(page_weights, rank, lr=1.0, eps=EPS, **of_page), page_weights)
    distances = _distances(fast, fast_weights, page, page_weights)
    worst = max(distances, key=lambda name: (distances[name] != distances[name], distances[name]))
    return Equality(backend, distances[worst], TOLERANCES[str(dtype).removeprefix("torch.")], worst)


def scaled_down(model: Model, rank: int) -> Model:
    """Two weights of each shape, smaller: of the same orientation and alignment, and wider than the rank."""
    longest = max(LONGEST_SHORTER_SIDE, 2 * rank)
    return Model(model.name, tuple(Shape(_small(each.shape, longest), 2, each.low_rank) for each in model.shapes))


def _small(shape: tuple[int, ...], longest: int) -> tuple[int, ...]:
    factor = min(1.0, longest / min(shape))
    return tuple(_small_side(side, int(min(side * factor, 4 * longest))) for side in shape)


def _small_side(side: int, small: int) -> int:
    """The next number from `small` on that leaves the remainder of `side` modulo 16, by which kernels are chosen."""
    return small + (side - small) % 16


def _take_steps(stepper: Stepper, weights: Weights) -> Stepper:
    """Steps from weights of zero, so that weights are sums of updates and no rounding of large ones hides an error."""
    with torch.no_grad():
        for param in weights.params:
            param.zero_()
    for step in range(NUM_STEPS):
        with torch.no_grad():
            fill_gradients_(weights.params, seed=step, scale=1.0)
        stepper.step()
    return stepper


def _distances(fast: Stepper, fast_weights: Weights, page: Stepper, page_weights: Weights) -> dict[str, float]:
    """By tensor. A basis is unique up to column signs only, so it is compared through the momentum U m."""
    found = {}
    for param, expected in zip(fast_weights.params, page_weights.params, strict=True):
        pairs = {"weight": (param.detach(), expected.detach())}
        state, reference = fast.state[param], page.state[expected]
        for key in state.keys() & {"error_buffer", "exp_avg_sq"}:
            pairs[key] = (state[key], reference[key])
        if "basis" in state:
            pairs["momentum"] = (state["basis"] @ state["exp_avg"], reference["basis"] @ reference["exp_avg"])
        for key, pair in pairs.items():
            name = f"{key} of {'x'.join(map(str, param.shape))}"
            found[name] = max(found.get(name, 0.0), _distance(*pair), key=lambda value: (value != value, value))
    return found


def _distance(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(torch.finfo(torch.float64).tiny)).item()
