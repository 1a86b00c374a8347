"""Random weights of a model, and gradients that look like those of training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from ldadam.bench.models import Model
from ldadam.peers import Weights

# A gradient is a signal of this rank plus noise, of about the size that clipped training has.
SIGNAL_RANK = 8
GRADIENT_SCALE = 1e-3


def make_weights(model: Model, *, device: torch.device, dtype: torch.dtype) -> Weights:
    """Parameters of the model's shapes in the order of its layers, with gradients."""
    generator = torch.Generator(device).manual_seed(0)
    made: dict[bool, list[Parameter]] = {True: [], False: []}
    for each in model.shapes:
        for _ in range(each.count):
            values = torch.randn(each.shape, generator=generator, device=device, dtype=dtype).mul_(0.02)
            made[each.low_rank].append(Parameter(values))
    weights = Weights(_interleaved(made[True]), made[False])
    fill_gradients_(weights.params, seed=1)
    return weights


def _interleaved(params: list[Parameter]) -> list[Parameter]:
    """The parameters in turn of shape, as a model's layers have them, rather than sorted by shape."""
    by_shape: dict[torch.Size, list[Parameter]] = {}
    for param in params:
        by_shape.setdefault(param.shape, []).append(param)
    places = {id(param): (index + 0.5) / len(same) for same in by_shape.values() for index, param in enumerate(same)}
    return sorted(params, key=lambda param: places[id(param)])


def fill_gradients_(params: list[Parameter], *, seed: int, scale: float = GRADIENT_SCALE) -> None:
    """Give each parameter a new gradient, in the storage of the old one where there is one."""
    for index, param in enumerate(params):
        generator = torch.Generator(param.device).manual_seed(1000 * seed + index)
        if param.grad is None:
            param.grad = torch.empty_like(param)
        param.grad.normal_(generator=generator)
        if param.ndim == 2:
            rank = min(SIGNAL_RANK, *param.shape)
            left, right = (_normal(param, generator, side, rank) for side in param.shape)
            param.grad.addmm_(left, right.mT)
        param.grad.mul_(scale)


def _normal(like: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
