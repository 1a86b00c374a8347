"""Small builders that tests share: parameters, gradients, and runs."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ldadam import LDAdamW, LDAdamWarning
from ldadam.hyperparameters import BACKENDS

# What runs everywhere, without a compiler: every test that is about numbers takes each of them.
PLAIN_BACKENDS = [name for name in BACKENDS if name in ("eager", "batched")]
SHAPES = [(20, 36), (36, 20), (24, 24), (63, 100)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same for each call with these arguments, in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Parameter:
    return Parameter(normal(*shape, seed=1000 + seed, dtype=dtype))


def gradients(shape: Sequence[int], num_steps: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A gradient a step: a slowly turning low-rank signal plus noise, as in training; vectors get noise."""
    noise = normal(num_steps, *shape, seed=seed, dtype=torch.float64)
    if len(shape) < 2 or 0 in shape:
        return noise.to(dtype)
    left = normal(num_steps, *shape[:-1], 3, seed=seed + 1, dtype=torch.float64).cumsum(0) / 3
    right = normal(*shape[:-2], 3, shape[-1], seed=seed + 2, dtype=torch.float64)
    return (left @ right + noise).to(dtype)


def grads_of(params: Sequence[Tensor], num_steps: int, *, seed: int = 0) -> list[list[Tensor]]:
    """For each step, a gradient for each parameter, in its dtype."""
    each = [gradients(p.shape, num_steps, seed=seed + 10 * i, dtype=p.dtype) for i, p in enumerate(params)]
    return [[grads[step] for grads in each] for step in range(num_steps)]


def take_step(optimizer: torch.optim.Optimizer, params: Sequence[Parameter], grads: Iterable[Tensor | None]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    optimizer.step()


def run(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Parameter],
    steps: Iterable[Iterable[Tensor | None]],
    *,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """Take a step for each list of gradients."""
    for grads in steps:
        take_step(optimizer, params, grads)
        after_step()


def mixed_params(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """A wide and a tall matrix, a stack of experts, a convolution, a vector: every kind of state at rank 4."""
    shapes = [(12, 20), (30, 9), (3, 10, 8), (8, 3, 3, 3), (7,)]
    return [parameter(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def quiet(params: Any, **options: Any) -> LDAdamW:
    """An optimizer whose ranks may be too large for some shapes, without the warning about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LDAdamWarning)
        return LDAdamW(params, **options)


def copies(params: Iterable[Parameter]) -> list[Parameter]:
    return [Parameter(param.detach().clone()) for param in params]


def live_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the storages that the state keeps alive, which a view would make larger than its tensor."""
    return sum(value.untyped_storage().nbytes() for state in optimizer.state.values() for value in state.values())


def distance(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm of what is expected."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()


def assert_same_state(actual: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    """Same keys, dtypes and bits for each parameter, by position, and the same hyperparameters."""
    left, right = actual.state_dict(), expected.state_dict()
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for index, state in right["state"].items():
        assert left["state"][index].keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(left["state"][index][key], value, rtol=0, atol=0, equal_nan=True)


def assert_same_params(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=0)
