"""The problems of theory.py: stacks of replicates, each with its assumption; and the noise of stochastic gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

REPLICATES, ROWS, COLS, RANK = 8, 16, 24, 4
SHAPE = (REPLICATES, ROWS, COLS)


# Noise: what is added to the true gradient. Every kind has mean zero.


def gaussian(generator: Generator) -> Tensor:
    """Bounded variance, 0.1 an entry: the noise that the theorems allow."""
    return 0.1 * normal(*SHAPE, generator=generator)


def student(generator: Generator) -> Tensor:
    """Student's t with 1.5 degrees of freedom, scaled by 0.1: a mean, but no variance, so that no theorem covers it."""
    half = torch.full(SHAPE, 1.5 / 2, dtype=torch.float64)
    chi_square = 2 * torch._standard_gamma(half, generator=generator)
    return 0.1 * normal(*SHAPE, generator=generator) / (chi_square / 1.5).sqrt()


def rare(generator: Generator) -> Tensor:
    """All entries at once: 249.5 with a chance of 1/500, else -0.5. Bounded, but far from symmetric."""
    is_now = torch.rand(REPLICATES, 1, 1, generator=generator) < 1 / 500
    return 0.5 * (500 * is_now.double() - 1).expand(SHAPE)


def normal(*shape: int, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# Problems


class Problem(NamedTuple):
    """Functions of the stack W: the gradient, f(W) - min f by replicate, and a draw of the gradient's noise."""

    gradient: Callable[[Tensor], Tensor]
    gap: Callable[[Tensor], Tensor]
    noise: Callable[[Generator], Tensor]


def robust_regression(noise: Callable[[Generator], Tensor] = gaussian) -> Problem:
    """Regression with a tenth of outliers and the Geman-McClure loss, 2 z^2 / (4 + z^2), which is bounded.

    Smooth (the second derivative of the loss is at most 1), not convex (that is negative for |z| > 1.16), and gradients
    are bounded. The minimum is not known, so that the gap is counted from zero.
    """
    generator, samples = Generator().manual_seed(0), 128
    inputs = normal(REPLICATES, samples, ROWS, generator=generator)
    targets = inputs @ (0.5 * normal(*SHAPE, generator=generator))
    targets = targets + 0.1 * normal(*targets.shape, generator=generator)
    is_outlier = torch.rand(targets.shape, generator=generator) < 0.1
    targets = targets + 10 * is_outlier * normal(*targets.shape, generator=generator)

    def gradient(weight: Tensor) -> Tensor:
        residual = inputs @ weight - targets
        return inputs.mT @ (residual / (1 + residual.square() / 4).square()) / samples

    def gap(weight: Tensor) -> Tensor:
        square = (inputs @ weight - targets).square()
        return (2 * square / (4 + square)).sum((1, 2)) / samples

    return Problem(gradient, gap, noise)


def least_squares(num_curved: int, noise: Callable[[Generator], Tensor]) -> Problem:
    """f(W) = tr (W - W*)'H(W - W*) / 2, where H has `num_curved` eigenvalues from 0.32 to 1, and else zeros.

    It is PL with mu = 0.32 and smooth with L = 1; with zeros it is not strongly convex, and has many minima.
    """
    generator = Generator().manual_seed(0)
    directions = torch.linalg.qr(normal(REPLICATES, ROWS, ROWS, generator=generator)).Q[..., :num_curved]
    hessian = (directions * torch.logspace(-0.5, 0, num_curved, dtype=torch.float64)) @ directions.mT
    optimum = 0.5 * normal(*SHAPE, generator=generator)

    def gradient(weight: Tensor) -> Tensor:
        return hessian @ (weight - optimum)

    def gap(weight: Tensor) -> Tensor:
        return ((weight - optimum) * gradient(weight)).sum((1, 2)) / 2

    return Problem(gradient, gap, noise)


def hidden_direction(*, rotated: bool = True) -> Problem:
    """f(W) = (u'Wv - 1)^2 / 2, and the noise +10 or -10 times PQ', which has rank r and is orthogonal to u and v.

    Smooth and PL with L = mu = 1; the noise is bounded. |grad f| is 1 at the start, a tenth of the noise's singular
    values, so that the best approximation of rank r of each stochastic gradient is the noise. Without `rotated`, u, v
    and the columns of P and Q are coordinate axes.
    """
    generator = Generator().manual_seed(0)

    def axes(side: int) -> Tensor:
        if not rotated:
            return torch.eye(side, dtype=torch.float64).expand(REPLICATES, side, side)
        return torch.linalg.qr(normal(REPLICATES, side, side, generator=generator)).Q

    left, right = axes(ROWS), axes(COLS)
    loud = left[..., :RANK] @ right[..., :RANK].mT
    hidden = left[..., RANK : RANK + 1] @ right[..., RANK : RANK + 1].mT  # uv'

    def missing(weight: Tensor) -> Tensor:
        return (weight * hidden).sum((1, 2), keepdim=True) - 1

    def noise(generator: Generator) -> Tensor:
        return 10 * loud * (2 * torch.randint(2, (REPLICATES, 1, 1), generator=generator) - 1)

    def gap(weight: Tensor) -> Tensor:
        return missing(weight).square().flatten() / 2

    return Problem(lambda weight: missing(weight) * hidden, gap, noise)
