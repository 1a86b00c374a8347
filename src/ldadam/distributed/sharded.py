"""DTensor parameters (FSDP2, HSDP, tensor parallel): their state, and the local block that a backend is handed.

Mesh and placements are read from the parameter at each step: nothing is passed by the user, and nothing is kept.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ldadam import error_buffer, state
from ldadam.backends.partial import Shards
from ldadam.backends.update import ParamUpdate
from ldadam.hyperparameters import Hyperparameters
from ldadam.layout import MatrixLayout
from ldadam.quantization import LARGEST_CODE
from ldadam.subspace import random_basis

# Which dimension of a state tensor lies along each side of the matrix; the basis is (..., m, r), moments (..., r, n).
_SIDES_OF_STATE = {"basis": {"m": -2}, "exp_avg": {"n": -1}, "exp_avg_sq": {"n": -1}}


def refuse_placements(param: DTensor, layout: MatrixLayout | None, hyper: Hyperparameters, *, name: str) -> None:
    """Refuse what cannot be stepped from local blocks.

    Raises:
        NotImplementedError: a placement, or an option, that has no sharded form.
    """
    for placement in param.placements:
        if not isinstance(placement, (Replicate, Shard)):
            raise NotImplementedError(f"{name} has the placement {placement}; expected Replicate or Shard")
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


def _from_local(local: Tensor, param: DTensor, placements: list[Placement], shape: torch.Size) -> DTensor:
    """A DTensor of a global shape, since that of uneven blocks does not follow from the local one."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def _placements(param: DTensor, layout: MatrixLayout | None, key: str) -> list[Placement]:
    """Where a state tensor is sharded: where its side of the matrix is; that of a dense parameter, as this is."""
    return [placement if layout is None else _along(placement, layout, key) for placement in param.placements]


def _along(placement: Placement, layout: MatrixLayout, key: str) -> Placement:
    if not isinstance(placement, Shard) or key in error_buffer.KEYS:
        return placement
    side = _side(placement.dim, layout)
    dim = placement.dim if side == "batch" else _SIDES_OF_STATE[key].get(side)
    if dim is None:
        return Replicate()
    return _with_dim(placement, dim % (len(layout.batch) + 2))


def _with_dim(placement: Shard, dim: int) -> Shard:
    """The same placement of another dimension; strided ones, of tensor parallel beside FSDP2, keep their factor."""
    if type(placement) is Shard:
        return Shard(dim)
    return type(placement)(dim, split_factor=placement.split_factor)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


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
        if isinstance(placement, Shard) and param.device_mesh.size(mesh_dim) > 1:
            groups[_side(placement.dim, layout)].append(param.device_mesh.get_group(mesh_dim))
    lengths, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    first = len(layout.batch)
    rows = (offset[first], offset[first] + lengths[first])
    cols = (0, layout.m if layout.transposed else layout.n)
    cols = (offset[first + 1], offset[first + 1] + lengths[first + 1]) if len(layout.shape) <= 3 else cols
    rows, cols = (cols, rows) if layout.transposed else (rows, cols)
    return Shards(tuple(groups["m"]), tuple(groups["n"]), rows, cols, (layout.m, layout.n))


def localize(update: ParamUpdate) -> ParamUpdate:
    """The same update of the local block, in the storage of the parameter and of its state."""
    param, grad, layout, shards = update.param, update.grad, update.layout, None
    assert isinstance(param, DTensor)
    if not isinstance(grad, DTensor) or grad.placements != param.placements:
        raise RuntimeError(
            f"the gradient of {update.name} has placements {getattr(grad, 'placements', None)}, expected those of the "
            f"parameter, {param.placements}"
        )
    block = param.to_local()
    if layout is not None:
        shards = shards_of(param, layout)
        m, n = (stop - start for start, stop in (shards.rows, shards.cols))
        layout = replace(layout, shape=tuple(block.shape), batch=tuple(block.shape[: len(layout.batch)]), m=m, n=n)
        shards = shards if shards.m or shards.n else None
    local = {key: value.to_local() if isinstance(value, DTensor) else value for key, value in update.state.items()}
    return replace(update, param=block, grad=grad.to_local(), state=local, layout=layout, shards=shards)
