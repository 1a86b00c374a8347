"""A = G + E for the matrices of a chunk, as torch's own products read it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldadam import quantization
from ldadam.backends.matrices import Chunk, Matrix


class Corrected:
    """A = G + E of each matrix of a chunk.

    It lies in the storage of E where that has the dtype of the products. Else it is formed each time it is read, so
    that there is never more than one copy.
    """

    def __init__(self, chunk: Chunk):
        self.chunk, self.m, self.n = chunk, chunk.kind.m, chunk.kind.n
        first = chunk.matrices[0]
        self.dtype = _product_dtype(first, chunk.dtype)
        self.has_contiguous_rows = not first.transposed if first.has_error else first.grad.stride(1) == 1
        self._in_place = first.error is not None and first.error.dtype == self.dtype
        if self._in_place:
            for matrix in chunk.matrices:
                assert matrix.error is not None
                self._add_grad(matrix, matrix.error)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self.chunk.matrices)))

    def __getitem__(self, index: int) -> Tensor:
        matrix = self.chunk.matrices[index]
        if self._in_place:
            assert matrix.error is not None
            return matrix.error
        if not matrix.has_error:
            return descent_grad(matrix, slice(None), self.dtype, maximize=self.chunk.hyper.maximize)
        return self._add_grad(matrix, self._error(matrix))

    def _error(self, matrix: Matrix) -> Tensor:
        """A copy of E in the dtype of the products."""
        if matrix.quantized is None:
            assert matrix.error is not None
            return matrix.error.to(self.dtype)
        cols = self.m if matrix.transposed else self.n
        return matrix.own_rows(quantization.decode(matrix.quantized, cols=cols, dtype=self.dtype))

    def _add_grad(self, matrix: Matrix, error: Tensor) -> Tensor:
        return error.add_(_accepted(matrix, matrix.grad), alpha=-1 if self.chunk.hyper.maximize else 1)

    def keep_(self, index: int, error: Tensor) -> None:
        """Store E where A was not formed in its place."""
        matrix = self.chunk.matrices[index]
        if matrix.quantized is not None:
            kind = quantization.kind_of(matrix.quantized.codes)
            for old, new in zip(matrix.quantized, quantization.encode(matrix.own_rows(error), kind), strict=True):
                old.copy_(new)
        elif matrix.error is not None and not self._in_place:
            matrix.error.copy_(error)


def descent_grad(matrix: Matrix, rows: slice, dtype: torch.dtype, *, maximize: bool) -> Tensor:
    """The gradient to descend, the projected side first, of some of the parameter's own rows; zero where refused."""
    grad = _accepted(matrix, matrix.own_rows(matrix.own_rows(matrix.grad)[rows])).to(dtype)
    return -grad if maximize else grad


def _accepted(matrix: Matrix, grad: Tensor) -> Tensor:
    return grad if matrix.accept is None else torch.where(matrix.accept, grad, 0)


def _product_dtype(matrix: Matrix, dtype: torch.dtype) -> torch.dtype:
    """`dtype`; or the 16 bits that weights, gradient and buffer share, on a device that multiplies them natively."""
    shared = {tensor.dtype for tensor in (matrix.param, matrix.grad, matrix.error) if tensor is not None}
    is_native = matrix.error is not None and matrix.error.is_cuda and len(shared) == 1
    return matrix.param.dtype if is_native and matrix.param.element_size() == 2 else dtype
