"""DTensor parameters (FSDP2, HSDP, tensor parallel): their state, and the local block that a backend is handed.

Mesh and placements are read from the parameter at each step: nothing is passed by the user, and nothing is kept.
"""

import math
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from ldadam import error_buffer, state
from ldadam.backends.partial import Shards
from ldadam.backends.update import ParamUpdate
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout
from ldadam.quantization import LARGEST_CODE
from ldadam.subspace import random_basis

# Which dimension of a state tensor lies along each side of the matrix; the basis is (..., m, r), moments (..., r, n).
_SIDES_OF_STATE = {"basis": {"m": -2}, "exp_avg": {"n": -1}, "exp_avg_sq": {"n": -1}}

# FSDP2 over tensor parallel divides a dimension that is divided already: a placement that newer torch has apart.
_AnyShard: TypeAlias = Shard | _StridedShard
_ANY_SHARD = (Shard, _StridedShard)


def refuse_placements(param: DTensor, layout: MatrixLayout | None, hyper: Hyperparameters, *, name: str) -> None:
    """Refuse what cannot be stepped from local blocks.

    Raises:
        NotImplementedError: a placement, or an option, that has no sharded form.
    """
    for placement in param.placements:
        if not isinstance(placement, (Replicate, *_ANY_SHARD)):
            raise NotImplementedError(f"{name} has the placement {placement}; expected Replicate or Shard")
    _refuse_interleaved(param, name=name)
    if layout is None:
        return
    shards = shards_of(param, layout)
    splits_columns = (shards.m if layout.transposed else shards.n) != ()
    if splits_columns and len(layout.shape) > 3:
        raise NotImplementedError(f"{name} of shape {layout.shape} is sharded within its filters; shard dimension 0")
    if splits_columns and hyper.error_dtype in LARGEST_CODE:
        raise NotImplementedError(
            f"{name} is sharded by columns, which would cut the blocks of error_dtype={hyper.error_dtype!r}; use "
            'error_dtype="bfloat16", or shard dimension 0'
        )
    if hyper.proj_method == "svd_lowrank":
        raise NotImplementedError(
            f'proj_method="svd_lowrank" draws from the generator of each rank, and {name} is sharded; use "svd"'
        )


def _refuse_interleaved(param: DTensor, *, name: str) -> None:
    """Refuse blocks that are no interval of rows, or are not where the placements say."""
    for mesh_dim, placement in enumerate(param.placements):
        if not isinstance(placement, _StridedShard):
            continue
        later = enumerate(param.placements[mesh_dim + 1 :], start=mesh_dim + 1)
        sizes = [param.device_mesh.size(dim) for dim, other in later if _divides(other, placement.dim)]
        if placement.split_factor != math.prod(sizes):
            raise NotImplementedError(
                f"{name} has placements {param.placements}: its shards interleave along dimension {placement.dim}; "
                "expected those of fully_shard after parallelize_module"
            )
    shape, _ = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    if shape != tuple(param.to_local().shape):
        raise NotImplementedError(
            f"{name} of shape {tuple(param.shape)} has a local shard of shape {tuple(param.to_local().shape)}, where "
            f"placements {param.placements} say {shape}; tensor parallel has to divide dimensions evenly"
        )


def _divides(placement: Placement, dim: int) -> bool:
    return isinstance(placement, _ANY_SHARD) and placement.dim == dim


def create_state(param: DTensor, layout: MatrixLayout | None, hyper: Hyperparameters) -> dict[str, Tensor]:
    """The state before the first step: that of the whole parameter, of which this rank makes its own block."""
    whole = state.create_state(torch.empty(param.shape, dtype=param.dtype, device="meta"), layout, hyper)
    sharded = {key: _zeros(param, layout, key, like=tensor) for key, tensor in whole.items()}
    if layout is not None:
        basis = random_basis(layout.m, layout.rank).to(whole["basis"].dtype).expand(whole["basis"].shape)
        sharded["basis"] = shard(param, layout, "basis", basis)
    return sharded


def _zeros(param: DTensor, layout: MatrixLayout | None, key: str, *, like: Tensor) -> Tensor:
    if not like.dim():
        return torch.zeros((), dtype=like.dtype, device=param.device if like.is_meta else None)
    placements = _placements(param, layout, key)
    shape, _ = compute_local_shape_and_global_offset(like.shape, param.device_mesh, placements)
    return _from_local(torch.zeros(shape, dtype=like.dtype, device=param.device), param, placements, like.shape)


def shard(param: DTensor, layout: MatrixLayout | None, key: str, value: Tensor) -> DTensor:
    """A whole state tensor, which every rank has, as the DTensor of which each keeps its block."""
    placements = _placements(param, layout, key)
    shape, offset = compute_local_shape_and_global_offset(value.shape, param.device_mesh, placements)
    block = value[tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))]
    local = block.to(param.device, copy=True, memory_format=torch.contiguous_format)
    return _from_local(local, param, placements, value.shape)


def place(param: Tensor, layout: MatrixLayout | None, key: str, value: Tensor) -> Tensor:
    """A copy of a loaded state tensor, where the parameter's own is; gathered where it was sharded otherwise."""
    if isinstance(value, DTensor) and not _is_placed(param, layout, key, value):
        value = value.full_tensor()
    if isinstance(param, DTensor) and not isinstance(value, DTensor) and value.dim():
        return shard(param, layout, key, value)
    return value.to(param.device, copy=True)


def _is_placed(param: Tensor, layout: MatrixLayout | None, key: str, value: DTensor) -> bool:
    if not isinstance(param, DTensor) or value.device_mesh != param.device_mesh:
        return False
    return list(value.placements) == _placements(param, layout, key)


def _from_local(local: Tensor, param: DTensor, placements: list[Placement], shape: torch.Size) -> DTensor:
    """A DTensor of a global shape, since that of uneven blocks does not follow from the local one."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def _placements(param: DTensor, layout: MatrixLayout | None, key: str) -> list[Placement]:
    """Where a state tensor is sharded: where its side of the matrix is; that of a dense parameter, as this is."""
    return [placement if layout is None else _along(placement, layout, key) for placement in param.placements]


def _along(placement: Placement, layout: MatrixLayout, key: str) -> Placement:
    if not isinstance(placement, _ANY_SHARD) or key in error_buffer.KEYS:
        return placement
    side = _side(placement.dim, layout)
    dim = placement.dim if side == "batch" else _SIDES_OF_STATE[key].get(side)
    if dim is None:
        return Replicate()
    return _with_dim(placement, dim % (len(layout.batch) + 2))


def _with_dim(placement: _AnyShard, dim: int) -> Placement:
    if isinstance(placement, _StridedShard):
        return _StridedShard(dim, split_factor=placement.split_factor)
    return Shard(dim)


def _side(dim: int, layout: MatrixLayout) -> str:
    """The side of the matrix along a dimension of the parameter: "batch", "m" or "n"."""
    if dim < len(layout.batch):
        return "batch"
    is_row = dim == len(layout.batch)
    return "m" if is_row != layout.transposed else "n"


def shards_of(param: DTensor, layout: MatrixLayout) -> Shards:
    """Which block of its matrix the local tensor of a parameter is, and the groups of ranks that hold the others."""
    groups: dict[str, list[Any]] = {"m": [], "n": [], "batch": []}
    for mesh_dim, placement in enumerate(param.placements):
        if isinstance(placement, _ANY_SHARD) and param.device_mesh.size(mesh_dim) > 1:
            groups[_side(placement.dim, layout)].append(param.device_mesh.get_group(mesh_dim))
    lengths, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    first = len(layout.batch)
    rows = (offset[first], offset[first] + lengths[first])
    cols = (0, layout.m if layout.transposed else layout.n)
    cols = (offset[first + 1], offset[first + 1] + lengths[first + 1]) if len(layout.shape) <= 3 else cols
    rows, cols = (cols, rows) if layout.transposed else (rows, cols)
    shape, stack = (layout.m, layout.n), math.prod(layout.batch)
    return Shards(tuple(groups["m"]), tuple(groups["n"]), rows, cols, shape, stack=stack)


def localize(update: ParamUpdate) -> ParamUpdate:
    """The same update of the local block, in the storage of the parameter and of its state."""
    param, layout, shards = update.param, update.layout, None
    assert isinstance(param, DTensor)
    block = param.to_local()
    if layout is not None:
        shards = shards_of(param, layout)
        m, n = (stop - start for start, stop in (shards.rows, shards.cols))
        layout = replace(layout, shape=tuple(block.shape), batch=tuple(block.shape[: len(layout.batch)]), m=m, n=n)
        shards = shards if shards.m or shards.n else None
    return replace(
        update,
        param=block,
        grad=local_gradient(param, update.grad, name=update.name),
        state=local_state(update.state),
        layout=layout,
        shards=shards,
        first_entry=_first_entry(param),
    )


def local_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The blocks of a state, in its own storage."""
    return {key: value.to_local() if isinstance(value, DTensor) else value for key, value in state.items()}


def local_gradient(param: DTensor, grad: Tensor, *, name: str) -> Tensor:
    """The gradient of the local block; tensor parallel may leave it to be summed over ranks, or replicated.

    Raises:
        RuntimeError: the gradient is not a DTensor on the parameter's mesh.
    """
    if not isinstance(grad, DTensor) or grad.device_mesh != param.device_mesh:
        raise RuntimeError(
            f"the gradient of {name} must be a DTensor on the mesh of the parameter, {param.device_mesh}; got "
            f"{getattr(grad, 'device_mesh', type(grad).__name__)}"
        )
    return grad.redistribute(placements=param.placements).to_local()


def _first_entry(param: DTensor) -> int:
    """The number of the local block's first entry, in the order of the whole parameter's indices."""
    _, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    stride = torch.empty(param.shape, device="meta").stride()
    return sum(start * step for start, step in zip(offset, stride, strict=True))


def follow_error_buffer_(
    state: dict[str, Tensor], param: DTensor, layout: MatrixLayout | None, hyper: Hyperparameters, *, name: str
) -> None:
    """Create E, drop it or store it anew, so that it is what the hyperparameters now ask for: each rank its block."""
    wanted = error_buffer.storage_name(hyper.error_dtype, param) if hyper.error_feedback else None
    if layout is None or error_buffer.stored_name(state) == wanted:
        return
    refuse_placements(param, layout, hyper, name=name)
    blocks = local_state(state)
    error_buffer.follow_(blocks, param.to_local(), error_feedback=hyper.error_feedback, error_dtype=hyper.error_dtype)
    for key in error_buffer.KEYS:
        state.pop(key, None)
    if wanted is not None:
        for key, meta in error_buffer.storage(param.shape, wanted).items():
            state[key] = _from_local(blocks[key], param, _placements(param, layout, key), meta.shape)
