"""Distributed execution."""

from torch import Tensor


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
