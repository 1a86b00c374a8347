"""What this rank holds of a tensor: all of it, or the local block of a DTensor, which is imported elsewhere."""

from typing import TYPE_CHECKING

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
