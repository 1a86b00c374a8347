"""Ranks that would take different steps are told so, all of them, before anything has moved."""

from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn import Parameter

from builders import normal, quiet
from distributed.processes import in_processes
from ldadam import LDAdamW, distributed, plan

SHAPES = {"wide": (12, 20), "tall": (30, 9), "bias": (7,), "other": (12, 20)}

# What the last rank does otherwise: options, another order, a gradient that it lacks.
OPTIONS = {
    "rank": {"rank": 3},
    "all dense": {"rank": None},
    "lr": {"lr": 2e-3},
    "lr zero": {"lr": 0.0},
    "error": {"error_dtype": "bfloat16"},
}
ORDERS = {"order": ("tall", "wide", "bias", "other"), "order of equals": ("other", "tall", "bias", "wide")}
WITHOUT = {"missing": "tall", "last missing": "other"}

# What all ranks are told, where the last one is rank 1.
TOLD = {
    "rank": "at place 0 (rank 0: wide, rank=2; rank 1: wide, rank=3)",
    "all dense": "at place 0 (rank 0: wide, rank=2, side='left'; rank 1: wide, rank=None, side=None)",
    "lr": "at place 0 (rank 0: wide, lr=0.001; rank 1: wide, lr=0.002)",
    "lr zero": "at place 0 (rank 0: wide, lr=0.001; rank 1: wide, lr=0.0)",
    "error": "at place 0 (rank 0: wide, error_dtype=None; rank 1: wide, error_dtype='bfloat16')",
    "order": "at place 0 (rank 0: wide, shape=(12, 20); rank 1: tall, shape=(30, 9))",
    "order of equals": "at place 0 (rank 0: wide, shape=(12, 20); rank 1: other, shape=(12, 20))",
    "missing": "at place 1 (rank 0: tall, shape=(30, 9); rank 1: bias, shape=(7,))",
    "last missing": "at place 3 (rank 0: other; rank 1: none)",
}


def build(mesh_shape: tuple[int, ...], change: str) -> LDAdamW:
    """An optimizer of parameters that ranks share, with gradients; changed on the last rank."""
    mesh, is_last = init_device_mesh("cpu", mesh_shape), dist.get_rank() == dist.get_world_size() - 1
    change = change if is_last else "none"
    options = {"rank": 2, "lr": 1e-3, **OPTIONS.get(change, {})}
    placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    params = {name: Parameter(distribute_tensor(normal(*shape), mesh, placements)) for name, shape in SHAPES.items()}
    for name, param in params.items():
        param.grad = None if WITHOUT.get(change) == name else torch.ones_like(param)
    names = ORDERS.get(change, SHAPES)
    return quiet([{"params": [params[name] for name in names], "param_names": list(names)}], **options)


def weights_of(optimizer: LDAdamW) -> list[Tensor]:
    return [param.detach().to_local().clone() for group in optimizer.param_groups for param in group["params"]]


def refused(optimizer: LDAdamW) -> tuple[str, bool]:
    """What `step` says, and whether the weights stayed."""
    before = weights_of(optimizer)
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value), all(map(torch.equal, before, weights_of(optimizer)))


def first_step(mesh_shape: tuple[int, ...], change: str) -> tuple[str, bool]:
    return refused(build(mesh_shape, change))


def assert_told(replies: list[tuple[str, bool]], difference: str) -> None:
    for message, has_stayed in replies:
        assert f"different steps of LDAdamW: the parameters that have a gradient differ {difference}. " in message
        assert has_stayed


@pytest.mark.parametrize("change", TOLD)
def test_a_rank_that_differs_is_named_on_all(change):
    assert_told(in_processes(first_step, 2, (2,), change), TOLD[change])


@pytest.mark.parametrize("change", ["lr", "missing"])
def test_ranks_that_share_no_group_with_it_are_told_too(change):
    """On a mesh of two axes the first rank is in no group with the last; replicas would drift apart in silence."""
    told = TOLD[change].replace("rank 1", "rank 3").replace("rank 0", "ranks 0, 1, 2")
    assert_told(in_processes(first_step, 4, (2, 2), change), told)


def first_step_again(change: str) -> list[Tensor]:
    """Weights after a refused step and, what was wrong put right, one that is taken."""
    optimizer = build((2,), change)
    if change != "none":
        refused(optimizer)
        optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.step()
    return weights_of(optimizer)


def test_a_refused_step_is_not_counted():
    for again, once in zip(
        in_processes(first_step_again, 2, "lr"), in_processes(first_step_again, 2, "none"), strict=True
    ):
        assert all(map(torch.equal, again, once))


def planned_in_a_group() -> int:
    return plan({"wide": (120, 200)}, rank=4).footprint.total


def test_a_plan_compares_nothing():
    assert in_processes(planned_in_a_group, 2) == [planned_in_a_group()] * 2


def resumed_by_some() -> tuple[str, bool]:
    """The last rank did not find the checkpoint, and starts anew."""
    optimizer = build((2,), "none")
    optimizer.step()
    again = build((2,), "none")
    if dist.get_rank() == 0:
        again.load_state_dict(deepcopy(optimizer.state_dict()))
    return refused(again)


def test_a_rank_that_was_not_resumed_is_named():
    assert_told(in_processes(resumed_by_some, 2), "at place 0 (rank 0: wide, step=1.0; rank 1: wide, step=0.0)")


def late_gradient() -> tuple[str, bool]:
    """A parameter is unfrozen on all ranks, with another learning rate on one."""
    optimizer = build((2,), "none")
    late = optimizer.param_groups[0]["params"][1]
    grad, late.grad = late.grad, None
    optimizer.step()
    late.grad = grad
    if dist.get_rank():
        optimizer.param_groups[0]["lr"] = 0.5
    return refused(optimizer)


def test_parameters_that_join_later_are_compared_when_they_do():
    assert_told(in_processes(late_gradient, 2), "at place 0 (rank 0: tall, lr=0.001; rank 1: tall, lr=0.5)")


def replica(change: str) -> str:
    """What a rank with whole weights and gradients of its own is told."""
    options = OPTIONS[change] if dist.get_rank() else {}
    model = torch.nn.Linear(20, 12)
    optimizer = quiet([{"params": list(model.parameters()), "rank": 2, "lr": 1e-3, **options}])
    distributed.compress_gradients(model, optimizer)
    model(torch.ones(1, 20)).sum().backward()
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value)


@pytest.mark.parametrize("change", ["rank", "lr", "error"])
def test_compressed_replicas_are_compared(change):
    for message in in_processes(replica, 2, change):
        assert TOLD[change].replace("wide", "parameter 0 of param group 0") in message
