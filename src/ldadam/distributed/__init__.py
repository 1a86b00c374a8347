"""Distributed execution."""

from torch import Tensor
from torch import distributed as dist


def refuse_unsupported(param: Tensor, *, name: str) -> None:
    """Refuse parameters whose local part is not the whole matrix: their training would be silently wrong.

    Raises:
        NotImplementedError: a DTensor (FSDP2, tensor parallel), or a flat parameter of FSDP1.
    """
    if getattr(param, "_is_flat_param", False):
        raise NotImplementedError(
            f"{name} is a flat parameter of FSDP1, which has lost the shapes of its matrices; use DDP, or FSDP1 with "
            "use_orig_params=True and sharding_strategy=NO_SHARD"
        )
    if hasattr(param, "placements"):
        raise NotImplementedError(f"{name} is a DTensor, which this version cannot step; use DDP or a single device")


def refuse_local_gradients() -> None:
    """Refuse to use a gradient inside backward where other processes may have another one.

    Raises:
        NotImplementedError: a process group of several processes exists.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise NotImplementedError(
            f"stepping in backward sees the gradient of one process, and there are {dist.get_world_size()}: "
            "DistributedDataParallel would average them only afterwards, and the processes would drift apart; "
            "call remove() on the handle of step_in_backward and step after backward"
        )
