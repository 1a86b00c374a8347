"""Distributed execution: parameters of which each rank holds a block, or has a gradient of its own.

DTensor is known to `sharded` alone, and imported when the first one is seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch import distributed as dist

from ldadam import error_buffer
from ldadam import state as whole_state
from ldadam.backends.partial import Shards
from ldadam.backends.update import ParamUpdate
from ldadam.distributed.agreement import refuse_different_steps
from ldadam.distributed.blocks import block_of, dividing_groups, has_own_matrices, is_sharded, mesh_groups
from ldadam.distributed.clipping import clip_grad_norm_
from ldadam.distributed.compressed import average_gradients_, compress_gradients, refuse_forgotten
from ldadam.distributed.reduction import all_reduce_
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout

__all__ = [
    "average_gradients_",
    "clip_grad_norm_",
    "compress_gradients",
    "is_sharded",
    "refuse_different_steps",
    "refuse_forgotten",
]


def refuse_unsupported(param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters, *, name: str) -> None:
    """Refuse parameters whose training would be silently wrong.

    Raises:
        NotImplementedError: a flat parameter of FSDP1 or ZeRO, or a sharding that has no exact step.
    """
    # The second mark is that of `use_orig_params=True`, where each parameter is a flat slice under its own name.
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise NotImplementedError(
            f"{name} is a flat parameter of FSDP1, which has lost the shapes of its matrices; use FSDP2 "
            "(torch.distributed.fsdp.fully_shard), or DistributedDataParallel where nothing is to be sharded"
        )
    if is_sharded(param):
        from ldadam.distributed import sharded

        sharded.refuse_placements(param, layout, hyper, name=name)


def refuse_replicas(
    param: Tensor,
    layout: MatrixLayout | None,
    hyper: Hyperparameters,
    replicas: tuple[dist.ProcessGroup, ...],
    *,
    name: str,
) -> None:
    """Refuse what ranks with gradients of their own, or blocks of their own, have no exact step for.

    Raises:
        NotImplementedError: each replica would find a basis of its own, or move by its own gradient, or a filter has no
            matrix in its memory.
    """
    if layout is None or not (replicas or is_sharded(param)):
        return
    if replicas and hyper.proj_method == "svd_lowrank":
        raise NotImplementedError(
            f'proj_method="svd_lowrank" draws from the generator of each rank, and the gradient of {name} is '
            'compressed; use "svd" or "power_iteration"'
        )
    if replicas and hyper.scaled_residual:
        raise NotImplementedError(
            f"scaled_residual moves {name} by its whole gradient, which ranks never average where it is compressed; "
            "leave compress_gradients out, or set scaled_residual=False"
        )
    if len(layout.shape) > 3 and not block_of(param).is_contiguous():
        raise NotImplementedError(
            f"{name} of shape {layout.shape} is not contiguous, as with channels_last, and cannot be stepped as a "
            "matrix where ranks share it; call .to(memory_format=torch.contiguous_format), or give it rank=None"
        )


def create_state(param: Tensor, layout: MatrixLayout | None, hyper: Hyperparameters) -> dict[str, Tensor]:
    """The state of a parameter before its first step; that of a sharded one is sharded where its side is."""
    if not is_sharded(param):
        return whole_state.create_state(param, layout, hyper)
    from ldadam.distributed import sharded

    return sharded.create_state(param, layout, hyper)


def is_zero(tensor: Tensor, *, replicas: tuple[dist.ProcessGroup, ...] = ()) -> bool:
    """Whether every entry is zero, on all ranks that have a part of it, or another one; they have to ask together."""
    found = block_of(tensor).any().to(torch.int32)
    for group in (*mesh_groups(tensor), *replicas):
        all_reduce_(found, group, op=dist.ReduceOp.MAX, what="ask whether a first gradient is zero")
    return not found


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


def localize_all(
    updates: Sequence[ParamUpdate], replicas: Mapping[Tensor, tuple[dist.ProcessGroup, ...]]
) -> list[ParamUpdate]:
    """The updates that this rank takes, of its own blocks, and of none that another rank of its parameter must refuse.

    Args:
        updates: of whole parameters, dense and low-rank ones of all param groups.
        replicas: for a parameter, groups of ranks whose gradients of it differ.
    """
    localized = [localize(update, replicas=replicas.get(update.param, ())) for update in updates]
    if not any(update.hyper.skip_nonfinite for update in updates):
        return localized
    from ldadam.distributed import execution

    return execution.agree_on_skips(localized, [_stepping_together(update, replicas) for update in updates])


def _stepping_together(update: ParamUpdate, replicas: Mapping[Tensor, tuple[dist.ProcessGroup, ...]]) -> Shards:
    """The ranks of which each has a part of a parameter (m), and those that have gradients of their own."""
    param, differing = update.param, replicas.get(update.param, ()) if update.layout is not None else ()
    return Shards(() if has_own_matrices(param) else dividing_groups(param), (), (0, 0), (0, 0), (0, 0), differing)


def localize(update: ParamUpdate, *, replicas: tuple[dist.ProcessGroup, ...] = ()) -> ParamUpdate:
    """The update that this rank takes: of its own block, and with the groups of ranks that it shares the matrix with.

    Args:
        update: of the whole parameter.
        replicas: groups of ranks whose gradients of the parameter differ; those of low-rank ones are to be averaged.
    """
    layout = update.layout
    if is_sharded(update.param):
        from ldadam.distributed import sharded

        update = sharded.localize(update)
    if layout is None or not replicas:
        return update
    shards = update.shards or Shards.whole(layout.m, layout.n, stack=math.prod(layout.batch))
    return replace(update, shards=replace(shards, replicas=replicas))


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move parameters that no rank can move alone, of all param groups, by one step each."""
    if updates:
        from ldadam.distributed import execution

        execution.step_(updates)


def refuse_local_gradients(param: Tensor, *, replicas: tuple[dist.ProcessGroup, ...] = ()) -> None:
    """Refuse to use a gradient inside backward where other processes may have another one, and no step averages them.

    A DTensor's gradient belongs to its whole mesh: FSDP2 has reduced it before anyone sees it. So it is final where
    the mesh, times the replicas that the step averages over, has every process.

    Raises:
        NotImplementedError: a process group has processes whose gradients may differ.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    num_sharing = math.prod(dist.get_world_size(group) for group in (*mesh_groups(param), *replicas))
    if dist.get_world_size() > num_sharing:
        raise NotImplementedError(
            f"stepping in backward sees a gradient that {num_sharing} of {dist.get_world_size()} processes share: "
            "DistributedDataParallel would average the others only afterwards, and the processes would drift apart; "
            "use compress_gradients, or call remove() on the handle of step_in_backward and step after backward"
        )
