"""How a parameter is seen as matrices: which side is projected, at which rank, and what shape its state has.

Left and right are known to this module alone. Everything after it sees (..., m, n) with the projected side first.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PROJ_TYPES = ("std", "reverse_std", "left", "right")


@dataclass(frozen=True)
class MatrixLayout:
    """A parameter seen as a matrix, or a stack of matrices, with the projected side first.

    Attributes:
        shape: the parameter's own shape.
        batch: leading dimensions: () for a matrix or a convolution, (experts,) for a 3-D parameter.
        m: length of the projected side.
        n: length of the other side.
        rank: columns of the basis, less than both m and n.
        transposed: whether columns are projected ("right"), so that the matrix is the parameter's transpose.
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    m: int
    n: int
    rank: int
    transposed: bool

    @property
    def side(self) -> str:
        """The projected side, in the terms of `proj_type`: "left" or "right"."""
        return "right" if self.transposed else "left"

    def to_matrix(self, tensor: Tensor) -> Tensor:
        """The (..., m, n) view of a tensor of the parameter's shape; a copy where its strides allow no view."""
        matrix = tensor.flatten(1) if len(self.shape) > 3 else tensor
        return matrix.mT if self.transposed else matrix

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of `to_matrix`."""
        return (matrix.mT if self.transposed else matrix).reshape(self.shape)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each state tensor but `step` and the error buffer, of which `error_buffer` knows."""
        return {
            "exp_avg": (*self.batch, self.rank, self.n),
            "exp_avg_sq": (*self.batch, self.rank, self.n),
            "basis": (*self.batch, self.m, self.rank),
        }


@lru_cache(maxsize=4096)
def matrix_layout(
    shape: torch.Size | tuple[int, ...], *, rank: int | float | None, proj_type: str
) -> MatrixLayout | None:
    """The layout of a low-rank parameter, or None for one that gets dense AdamW.

    A parameter is low-rank when it has at least two dimensions and both sides of its matrix exceed the rank. Tensors
    of three dimensions are stacks of matrices (experts); of four and more, convolutions, flattened to (out, rest).

    Args:
        shape: the parameter's global shape.
        rank: an int, a fraction of the shorter side, or None.
        proj_type: "std" projects the shorter side, "reverse_std" the longer, "left" the rows, "right" the columns.
    """
    if rank is None or len(shape) < 2:
        return None
    batch, rows, cols = matrix_dims(shape)
    rank = resolve_rank(rank, min(rows, cols))
    if rank >= min(rows, cols) or math.prod(batch) == 0:
        return None
    transposed = {"left": False, "right": True, "std": rows > cols, "reverse_std": rows < cols}[proj_type]
    m, n = (cols, rows) if transposed else (rows, cols)
    return MatrixLayout(tuple(shape), batch, m, n, rank, transposed)


def matrix_dims(shape: torch.Size | tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """Batch dimensions, rows and columns of a parameter of at least two dimensions."""
    if len(shape) == 3:
        return (shape[0],), shape[1], shape[2]
    return (), shape[0], math.prod(shape[1:])


def resolve_rank(rank: int | float, shorter_side: int) -> int:
    """The rank in columns: a fraction is one of the shorter side, rounded, and at least one."""
    return rank if isinstance(rank, int) else max(1, round(rank * shorter_side))


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of moments, basis and arithmetic: float64 for float64 parameters, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
