"""Six products with torch's own kernels: equal matrices together, the large products in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldadam.algorithm import LowRankState
from ldadam.backends import eager
from ldadam.backends.matrices import Chunk, Matrix, chunks
from ldadam.backends.six_products import advance_, step_chunk_, target_rows
from ldadam.backends.update import ParamUpdate
from ldadam.subspace import first_basis, range_finder

# Bytes of scratch, m x r and r x n, for the matrices stepped together: enough to amortise small operations.
# CPUs gain nothing beyond their caches, GPUs want many matrices at a time.
SCRATCH_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move each parameter and its state in place."""
    eager.step_([update for update in updates if needs_page(update)])
    fast = [update for update in updates if not needs_page(update)]
    device = updates[0].param.device.type if updates else "cpu"
    scratch = SCRATCH_BYTES.get(device, SCRATCH_BYTES["cpu"])
    for chunk in chunks(fast, max_scratch=scratch, copies=True):
        step_chunk_(chunk, TorchProducts())


def dense_step_(updates: Sequence[ParamUpdate]) -> None:
    """AdamW in place: torch's fused kernel for float32 and float64 on the CPU, else the page."""
    eager.dense_step_([update for update in updates if not _suits_fused(update)])
    fused = [update for update in updates if _suits_fused(update)]
    for dtype in {update.param.dtype for update in fused}:
        same = [update for update in fused if update.param.dtype == dtype]
        hyper = same[0].hyper
        torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
            [update.param for update in same],
            [update.grad.to(dtype) for update in same],
            [update.state["exp_avg"] for update in same],
            [update.state["exp_avg_sq"] for update in same],
            [],
            [update.state["step"] for update in same],
            lr=hyper.lr,  # pyright: ignore[reportArgumentType]
            beta1=hyper.betas[0],
            beta2=hyper.betas[1],
            weight_decay=hyper.weight_decay,
            eps=hyper.eps,
            amsgrad=False,
            maximize=hyper.maximize,
        )


def _suits_fused(update: ParamUpdate) -> bool:
    return (
        update.param.device.type == "cpu"
        and not update.hyper.skip_nonfinite
        and update.state["exp_avg"].dtype == update.param.dtype
        and update.param.is_contiguous()
        and update.grad.is_contiguous()
    )


def needs_page(update: ParamUpdate) -> bool:
    """Whether a step is left to the page: without products, with E in codes, or with weights rounded by chance."""
    return has_no_products(update) or "error_scale" in update.state or update.rounds_by_chance


def has_no_products(update: ParamUpdate) -> bool:
    """Whether only the page can take a step: bases from decompositions, and storage that has no matrix view."""
    layout = update.layout
    assert layout is not None
    if update.hyper.proj_method != "power_iteration":
        return True
    if update.is_first and first_basis("power_iteration", shorter_side=min(layout.m, layout.n)) is not range_finder:
        return True
    tensors = (update.param, update.grad)
    return len(layout.shape) > 3 and not all(tensor.is_contiguous() for tensor in tensors)


class TorchProducts:
    """The large products, one matrix at a time; each is big enough to fill the machine.

    On CUDA, A stays in the storage of a 16-bit error buffer, and the other factor is rounded to its dtype: products of
    16-bit inputs, accumulated in float32.
    """

    def correct(self, chunk: Chunk, basis: Tensor) -> tuple[list[Tensor], Tensor]:
        """A = G + E for each matrix, in the storage of E where that has the dtype, and U'A (B, r, n)."""
        corrected = [_corrected(matrix, chunk) for matrix in chunk.matrices]
        return corrected, self.project(basis, corrected)

    def project(self, basis: Tensor, corrected: list[Tensor]) -> Tensor:
        """U'A (B, r, n) from U (B, m, r); the factor and the result lie as the storage of A likes them best."""
        factor = basis.to(corrected[0].dtype)
        if corrected[0].stride(1) == 1:
            return _products(factor.mT.contiguous(), corrected, dtype=basis.dtype)
        return _products([matrix.mT for matrix in corrected], factor, dtype=basis.dtype).mT.contiguous()

    def lift(self, corrected: list[Tensor], rows: Tensor) -> Tensor:
        """A Y (B, m, r) from Y' (B, r, n)."""
        factor = rows.to(corrected[0].dtype)
        if corrected[0].stride(1) == 1:
            return _products(corrected, factor.mT.contiguous(), dtype=rows.dtype)
        return _products(factor, [matrix.mT for matrix in corrected], dtype=rows.dtype).mT.contiguous()

    def target_rows(self, chunk: Chunk, prev: LowRankState, projected: Tensor) -> Tensor:
        """Y' (B, r, n), up to a scale of each row."""
        return target_rows(chunk, prev, projected)

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """left right' (B, r, r), from two (B, r, l) tensors."""
        return left @ right.mT

    def advance_(self, chunk: Chunk, prev: LowRankState, basis: Tensor, low_rank_grad: Tensor) -> tuple[Tensor, Tensor]:
        """m and v in place, and the factors that E and W are updated from."""
        return advance_(chunk, prev, basis, low_rank_grad)

    def finish_(self, chunk: Chunk, corrected: list[Tensor], left: Tensor, right: Tensor, descent: Tensor) -> None:
        """E = A - left right and W = (1 - lr wd) W - U descent, in place."""
        dtype = corrected[0].dtype
        left, right, descent = left.to(dtype), right.to(dtype), descent.to(dtype)
        decay = chunk.hyper.lr * chunk.hyper.weight_decay
        for index, matrix in enumerate(chunk.matrices):
            if matrix.error is not None:
                corrected[index].addmm_(left[index], right[index], alpha=-1)
                if corrected[index].data_ptr() != matrix.error.data_ptr():
                    matrix.error.copy_(corrected[index])
            weight = matrix.param.to(dtype)
            if chunk.hyper.weight_decay:
                weight.mul_(1 - (decay if matrix.accept is None else decay * matrix.accept.double()))
            weight.addmm_(left[index][:, : descent.shape[-2]], descent[index], alpha=-1)
            if weight.dtype != matrix.param.dtype:
                matrix.param.copy_(weight)


def _products(left: Sequence[Tensor] | Tensor, right: Sequence[Tensor] | Tensor, *, dtype: torch.dtype) -> Tensor:
    """left right for each pair, stacked, in `dtype`; 16-bit factors accumulate in it."""
    stacked = left[0].new_empty(len(left), left[0].shape[0], right[0].shape[1], dtype=dtype)
    options = {} if left[0].dtype == dtype else {"out_dtype": dtype}
    for index in range(len(left)):
        torch.mm(left[index], right[index], out=stacked[index], **options)
    return stacked


def _corrected(matrix: Matrix, chunk: Chunk) -> Tensor:
    grad = matrix.grad if matrix.accept is None else torch.where(matrix.accept, matrix.grad, 0)
    sign = -1 if chunk.hyper.maximize else 1
    if matrix.error is None:
        return sign * grad.to(chunk.dtype)
    if matrix.error.dtype in (chunk.dtype, _product_dtype(matrix)):
        return matrix.error.add_(grad, alpha=sign)
    return matrix.error.to(chunk.dtype).add_(grad, alpha=sign)


def _product_dtype(matrix: Matrix) -> torch.dtype | None:
    """The 16-bit dtype in which A may stay: weights and buffer share it, on a device that multiplies it natively."""
    error = matrix.error
    is_native = error is not None and error.is_cuda and error.dtype == matrix.param.dtype == matrix.grad.dtype
    return error.dtype if error is not None and is_native and error.element_size() == 2 else None
