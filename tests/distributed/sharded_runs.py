"""Runs of sharded parameters, in a process group, and of the same parameters alone."""

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn import Parameter

from builders import grads_of, parameter, quiet
from ldadam import subspace

# Wide, tall, square; odd, with uneven shards; so few rows, or columns, that some shards are empty; a stack of experts;
# a convolution; vectors.
SHAPES = [(12, 20), (30, 9), (8, 8), (63, 35), (3, 20), (20, 3), (3, 10, 8), (9, 4, 3, 3), (7,), (1,)]

LAYOUTS = {
    "fsdp, 2": ((2,), [Shard(0)]),
    "columns, 2": ((2,), [Shard(1)]),
    "replicated, 2": ((2,), [Replicate()]),
    "fsdp, 4": ((4,), [Shard(0)]),
    "columns, 4": ((4,), [Shard(1)]),
    "hsdp, 2 x 2": ((2, 2), [Replicate(), Shard(0)]),
    "rows and columns, 2 x 2": ((2, 2), [Shard(0), Shard(1)]),
    "columns and rows, 2 x 2": ((2, 2), [Shard(1), Shard(0)]),
    "rows twice, 2 x 2": ((2, 2), [Shard(0), Shard(0)]),
}

OPTIONS = {
    "defaults": {},
    "weight decay": {"weight_decay": 0.1},
    "no error feedback": {"error_feedback": False},
    "kept subspace": {"update_interval": 3},
    "int8": {"error_dtype": "int8"},
    "svd": {"proj_method": "svd"},
    "right": {"proj_type": "right"},
    "range finder": {},
    "skip_nonfinite": {"skip_nonfinite": True},
}


def trajectory(params: list[Parameter], dtype: torch.dtype, options: str, num_steps: int, shard) -> list[list[Tensor]]:
    """Weights after each step; `shard` makes what the optimizer is given of a whole parameter or gradient."""
    sharded = [Parameter(shard(param.detach())) for param in params]
    subspace.SVD_MAX_SIDE = 1 if options == "range finder" else 256
    optimizer = quiet(sharded, rank=2, lr=1e-2, **OPTIONS[options])
    weights = []
    for number, grads in enumerate(grads_of(params, num_steps)):
        if options == "skip_nonfinite" and number == 2:
            grads[1][-1, 0] = grads[3][0, -1] = float("nan")
        for param, grad in zip(sharded, grads, strict=True):
            param.grad = shard(grad)
        optimizer.step()
        weights.append([full(param) for param in sharded])
    return weights


def full(param: Tensor) -> Tensor:
    return (param.full_tensor() if isinstance(param, DTensor) else param).detach().clone()


def params_of(dtype: torch.dtype) -> list[Parameter]:
    return [parameter(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(SHAPES)]


def alone(dtype: torch.dtype, options: str, num_steps: int) -> list[list[Tensor]]:
    return trajectory(params_of(dtype), dtype, options, num_steps, lambda tensor: tensor.clone())


def suits(shape: tuple[int, ...], layout: str, options: str) -> bool:
    """Whether a parameter of that shape is sharded in a layout, rather than replicated, in this test."""
    columns = any(placement == Shard(1) for placement in LAYOUTS[layout][1])
    return not (columns and (len(shape) != 2 or options == "int8"))


def together(cases: list[tuple[str, str, torch.dtype, int]]) -> dict[tuple[str, str, torch.dtype, int], list]:
    """Of each case (layout, options, dtype, number of steps) the weights after each step, in this process group."""
    results = {}
    meshes = {}
    for case in cases:
        layout, options, dtype, num_steps = case
        sizes, placements = LAYOUTS[layout]
        mesh = meshes.setdefault(sizes, init_device_mesh("cpu", sizes))

        def shard(tensor: Tensor, mesh=mesh, placements=placements, layout=layout, options=options) -> DTensor:
            fitting = placements if suits(tuple(tensor.shape), layout, options) else [Replicate()] * mesh.ndim
            return distribute_tensor(tensor.clone(), mesh, fitting)

        results[case] = trajectory(params_of(dtype), dtype, options, num_steps, shard)
    return results
