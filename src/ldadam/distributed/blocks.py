"""What this rank holds of a tensor: all of it, or the local block of a DTensor, which is imported elsewhere."""

from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_sharded(param: Tensor) -> "TypeIs[DTensor]":
    """Whether a parameter is a DTensor."""
    return hasattr(param, "placements")


def block_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, in its own storage."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def mesh_groups(param: Tensor) -> list[dist.ProcessGroup]:
    """The groups, one for each axis of its mesh, that a parameter is spread over."""
    return [param.device_mesh.get_group(axis) for axis in range(param.device_mesh.ndim)] if is_sharded(param) else []


def dividing_groups(tensor: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups of the mesh axes that a tensor is divided over."""
    if not is_sharded(tensor):
        return ()
    axes = [axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    return tuple(tensor.device_mesh.get_group(axis) for axis in axes)


def has_own_matrices(param: Tensor) -> bool:
    """Whether a parameter is a stack of which each rank has whole matrices, such as experts, to step by itself."""
    placements = getattr(param, "placements", ())
    return param.ndim == 3 and all(one.is_replicate() or one.is_shard(0) for one in placements)


def refuse_other_optimizers(optimizer: Any, *, caller: str) -> None:
    """Refuse what is no `LDAdamW`, which lies above and cannot be imported here.

    Raises:
        TypeError: it does not know which ranks have other gradients.
    """
    if not hasattr(optimizer, "replicas"):
        raise TypeError(f"{caller} needs an LDAdamW, got {type(optimizer).__name__}; unwrap it first")
