"""Ranks with whole weights and gradients of their own take the step of the mean gradient."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from builders import distance, grads_of, normal, parameter, quiet, run
from distributed.processes import in_processes
from ldadam import distributed
from ldadam.backends.update import ParamUpdate
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import matrix_layout
from ldadam.state import create_state
from tolerances import TOLERANCES

SHAPES = [(12, 20), (30, 9), (3, 10, 8)]
NUM_STEPS = 8
OPTIONS = {"defaults": {}, "kept subspace": {"update_interval": 3}, "svd": {"proj_method": "svd"}}


def gradients_of_rank(rank: int) -> list[list[Tensor]]:
    """For each step, a gradient for each shape: `mean_gradients` and what cancels out over an even number of ranks."""
    sign, seed = (1 if rank % 2 else -1), 100 * (rank // 2)
    noise = [normal(*shape, seed=seed + number, dtype=torch.float64) for number, shape in enumerate(SHAPES)]
    return [[grad + sign * own for grad, own in zip(grads, noise, strict=True)] for grads in mean_gradients()]


def mean_gradients() -> list[list[Tensor]]:
    return grads_of(params(), NUM_STEPS)


def params() -> list[torch.nn.Parameter]:
    return [parameter(*shape, seed=seed, dtype=torch.float64) for seed, shape in enumerate(SHAPES)]


def weights_and_errors(options: str) -> tuple[list[Tensor], list[Tensor]]:
    """Of this rank, after steps with its own gradients."""
    hyper, weights = Hyperparameters(rank=2, lr=1e-2, **OPTIONS[options]), params()
    layouts = [matrix_layout(weight.shape, rank=2, proj_type="std") for weight in weights]
    states = [create_state(weight, layout, hyper) for weight, layout in zip(weights, layouts, strict=True)]
    with torch.no_grad():
        for number, grads in enumerate(gradients_of_rank(dist.get_rank()), start=1):
            updates = [
                ParamUpdate(weight.data, grad, state, float(number), hyper, layout, is_first=number == 1)
                for weight, grad, state, layout in zip(weights, grads, states, layouts, strict=True)
            ]
            updates = [replace(update, number=place) for place, update in enumerate(updates)]
            distributed.step_([distributed.localize(update, replicas=(dist.group.WORLD,)) for update in updates])
    return [weight.detach() for weight in weights], [state["error_buffer"] for state in states]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_replicas_take_the_step_of_the_mean_gradient(world_size, options):
    alone = params()
    optimizer = quiet(alone, rank=2, lr=1e-2, **OPTIONS[options])
    run(optimizer, alone, mean_gradients())
    of_ranks = in_processes(weights_and_errors, world_size, options)
    for weights, _ in of_ranks:
        for weight, first, expected in zip(weights, of_ranks[0][0], alone, strict=True):
            assert torch.equal(weight, first)
            assert distance(weight, expected) <= TOLERANCES["float64 trajectory"]
    for index, param in enumerate(alone):
        mean = sum(errors[index] for _, errors in of_ranks) / world_size
        assert distance(mean, optimizer.state[param]["error_buffer"]) <= TOLERANCES["float64 trajectory"]
