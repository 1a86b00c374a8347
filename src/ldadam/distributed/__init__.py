"""Distributed execution: parameters of which each rank holds a block, or has a gradient of its own.

DTensor is known to `sharded` alone, and imported when the first one is seen.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch import distributed as dist

from ldadam import error_buffer
from ldadam import state as whole_state
from ldadam.backends.partial import Shards
from ldadam.backends.update import ParamUpdate
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_sharded(param: Tensor) -> "TypeIs[DTensor]":
    """Whether a parameter is a DTensor."""
    return hasattr(param, "placements")


def refuse_unsupported(param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters, *, name: str) -> None:
    """Refuse parameters whose training would be silently wrong.

    Raises:
        NotImplementedError: a flat parameter of FSDP1 or ZeRO, or a sharding that has no exact step.
    """
    if getattr(param, "_is_flat_param", False):
        raise NotImplementedError(
            f"{name} is a flat parameter of FSDP1, which has lost the shapes of its matrices; use FSDP2 "
            "(torch.distributed.fsdp.fully_shard), or FSDP1 with use_orig_params=True and "
            "sharding_strategy=NO_SHARD"
        )
    if is_sharded(param):
        from ldadam.distributed import sharded

        sharded.refuse_placements(param, layout, hyper, name=name)


def create_state(param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters) -> dict[str, Tensor]:
    """The state of a parameter before its first step; that of a sharded one is sharded where its side is."""
    if not is_sharded(param):
        return whole_state.create_state(param, layout, hyper)
    from ldadam.distributed import sharded

    return sharded.create_state(param, layout, hyper)


def is_zero(tensor: Tensor) -> bool:
    """Whether every entry is zero; of a sharded tensor on all ranks, which have to ask together."""
    if not is_sharded(tensor):
        return not tensor.any()
    from ldadam.distributed import sharded

    return sharded.is_zero(tensor)


def follow_changes_(
    state: dict[str, Tensor], param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters, *, name: str
) -> None:
    """Bring state in line with hyperparameters that were changed after it was created, as `state.follow_changes_`."""
    if is_sharded(param):
        from ldadam.distributed import sharded

        sharded.follow_error_buffer_(state, param, layout, hyper, name=name)
    whole_state.follow_changes_(state, param, layout, hyper, name=name)


def accumulate_(state: dict[str, Tensor], param: Tensor, grad: Tensor, *, sign: int, name: str) -> None:
    """E + sign G in place, as `error_buffer.add_`; of a sharded parameter each rank adds its own block."""
    if is_sharded(param):
        from ldadam.distributed import sharded

        state, grad = sharded.local_state(state), sharded.local_gradient(param, grad, name=name)
    error_buffer.add_(state, grad, sign=sign)


def place(param: Tensor, layout: MatrixLayout | None, key: str, value: Tensor) -> Tensor:
    """A copy of a loaded state tensor, on the device of its parameter and sharded as that one's is."""
    if not (is_sharded(param) or is_sharded(value)):
        return value.to(param.device, copy=True)
    from ldadam.distributed import sharded

    return sharded.place(param, layout, key, value)


def localize(update: ParamUpdate, *, replicas: tuple[dist.ProcessGroup, ...] = ()) -> ParamUpdate:
    """The update that this rank takes: of its own block, and with the groups of ranks that it shares the matrix with.

    Args:
        update: of the whole parameter.
        replicas: groups of ranks whose gradients of low-rank parameters differ, and are to be averaged.
    """
    if is_sharded(update.param):
        from ldadam.distributed import sharded

        update = sharded.localize(update)
    if update.layout is None or not replicas:
        return update
    shards = update.shards or Shards.whole(update.layout.m, update.layout.n)
    return replace(update, shards=replace(shards, replicas=replicas))


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move parameters that no rank can move alone, of all param groups, by one step each."""
    if updates:
        from ldadam.distributed import execution

        execution.step_(updates)


def refuse_local_gradients(param: Tensor) -> None:
    """Refuse to use a gradient inside backward where other processes may have another one.

    A DTensor's gradient belongs to its whole mesh: FSDP2 has reduced it before anyone sees it. So it is final where
    the mesh has every process.

    Raises:
        NotImplementedError: a process group has processes whose gradients may differ.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    num_sharing = param.device_mesh.size() if is_sharded(param) else 1
    if dist.get_world_size() > num_sharing:
        raise NotImplementedError(
            f"stepping in backward sees a gradient that {num_sharing} of {dist.get_world_size()} processes share: "
            "DistributedDataParallel would average the others only afterwards, and the processes would drift apart; "
            "call remove() on the handle of step_in_backward and step after backward"
        )
