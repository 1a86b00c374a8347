"""Runs of sharded parameters, in a process group, and of the same parameters alone."""

from unittest.mock import patch

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
    "buffer stored anew": {"error_dtype": "bfloat16"},
    "stochastic rounding": {"stochastic_rounding": True},
    "residual": {"scaled_residual": True, "weight_decay": 0.1},
}


def trajectory(params: list[Parameter], dtype: torch.dtype, options: str, num_steps: int, shard) -> list[list[Tensor]]:
    """Weights after the first and the last step; `shard` makes what the optimizer is given of a whole tensor."""
    sharded = [Parameter(shard(param.detach())) for param in params]
    optimizer = quiet(sharded, rank=2, lr=1e-2, **OPTIONS[options])
    weights = []
    for number, grads in enumerate(grads_of(params, num_steps)):
        if options == "buffer stored anew" and number in (1, 3):
            optimizer.param_groups[0].update(error_dtype="int8" if number == 1 else "float64")
        if options == "skip_nonfinite" and number == 2:
            grads[1][-1, 0] = grads[3][0, -1] = grads[8][-1] = float("nan")
        for param, grad in zip(sharded, grads, strict=True):
            param.grad = shard(grad)
        with patch.object(subspace, "SVD_MAX_SIDE", 1 if options == "range finder" else 256):
            optimizer.step()
        if number in (0, num_steps - 1):
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
    return not (columns and (len(shape) != 2 or options in ("int8", "buffer stored anew")))


def together(layout: str, options: str, dtype: torch.dtype, num_steps: int) -> list[list[Tensor]]:
    """The weights after the first and the last step, in this process group."""
    sizes, placements = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", sizes)

    def shard(tensor: Tensor) -> DTensor:
        fitting = placements if suits(tuple(tensor.shape), layout, options) else [Replicate()] * mesh.ndim
        return distribute_tensor(tensor.clone(), mesh, fitting)

    return trajectory(params_of(dtype), dtype, options, num_steps, shard)
