"""Six products with torch's own kernels: equal matrices together, the large products in place."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ldadam.algorithm import LowRankState
from ldadam.backends import eager
from ldadam.backends.corrected import Corrected, descent_grad
from ldadam.backends.matrices import Chunk, Matrix, chunks
from ldadam.backends.partial import run_alone
from ldadam.backends.six_products import Descent, Products, accepted, advance_, step_chunk_, target_rows
from ldadam.backends.update import ParamUpdate
from ldadam.pieces import pieces
from ldadam.rounding import stochastic_round
from ldadam.subspace import cholesky_qr, nonzero, orthonormalize

# Bytes of scratch, m x r and r x n, for the matrices stepped together: enough to amortise small operations.
# CPUs gain nothing beyond their caches, GPUs want many matrices at a time.
SCRATCH_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move each parameter and its state in place."""
    eager.step_([update for update in updates if needs_page(update)])
    for one in products([update for update in updates if not needs_page(update)]):
        run_alone(step_chunk_(one))


def products(updates: Sequence[ParamUpdate]) -> Iterator[Products]:
    """The products of each chunk of these parameters."""
    device = updates[0].param.device.type if updates else "cpu"
    for chunk in chunks(updates, max_scratch=SCRATCH_BYTES.get(device, SCRATCH_BYTES["cpu"])):
        yield TorchProducts(chunk)


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
    """Whether a step is left to the page: bases from decompositions, and storage that has no matrix view."""
    layout = update.layout
    assert layout is not None
    if update.shards is None and eager.decomposition(update) is not None:
        return True
    tensors = (update.param, update.grad)
    return len(layout.shape) > 3 and not all(tensor.is_contiguous() for tensor in tensors)


class TorchProducts:
    """The large products, one matrix at a time; each is big enough to fill the machine.

    Small factors lie in memory as the product that makes them, and the one that reads them, are fastest: along the rows
    or the columns that A has contiguous. On CUDA, A stays in the storage of a 16-bit error buffer, and the other factor
    is rounded to its dtype: products of 16-bit inputs, accumulated in float32.
    """

    def __init__(self, chunk: Chunk):
        self.chunk = chunk

    def correct(self, basis: Tensor) -> Tensor:
        """A = G + E for each matrix, and U'A (B, r, n)."""
        self.corrected = Corrected(self.chunk)
        return self.project(basis)

    def corrected_grads(self) -> Tensor:
        """A (B, m, n)."""
        return torch.stack(list(self.corrected))

    def project(self, basis: Tensor) -> Tensor:
        """U'A (B, r, n) from U (B, m, r)."""
        corrected = self.corrected
        (batch, _, rank), factor = basis.shape, basis.to(corrected.dtype).mT
        if corrected.has_contiguous_rows:
            return _products(factor.unbind(), corrected, out=basis.new_empty(batch, rank, corrected.n))
        return _products(factor.unbind(), corrected, out=basis.new_empty(batch, corrected.n, rank).mT).contiguous()

    def lift(self, rows: Tensor) -> Tensor:
        """A Y (B, m, r) from Y' (B, r, n)."""
        corrected = self.corrected
        (batch, rank, _), factor = rows.shape, rows.to(corrected.dtype).mT
        if corrected.has_contiguous_rows:
            return _products(corrected, factor.contiguous().unbind(), out=rows.new_empty(batch, corrected.m, rank))
        return _products(corrected, factor.unbind(), out=rows.new_empty(batch, rank, corrected.m).mT)

    def target_rows(self, prev: LowRankState, projected: Tensor) -> Tensor:
        """Y' (B, r, n), up to a scale of each row; in place of U_minus'A."""
        chunk = self.chunk
        beta1, rho, step = chunk.hyper.betas[0], chunk.hyper.rho, chunk.step
        if isinstance(step, Tensor):
            return target_rows(chunk, prev, projected)
        rows = projected.mul_(1 - rho)
        if step > 1:
            rows.add_(prev.exp_avg, alpha=rho / (1 - beta1 ** (step - 1)))
        return rows.div_(nonzero(rows.abs().amax(dim=-1, keepdim=True)))

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """left right' (B, r, r), from two (B, r, l) tensors."""
        return left @ right.mT

    def orthonormalize(self, columns: Tensor, *, fallback: Tensor) -> Tensor:
        """orth(X): LAPACK's QR on CPUs, where it is as fast as Cholesky-QR."""
        if columns.is_cuda and columns.dtype != torch.float64:
            return cholesky_qr(columns, fallback=fallback)
        return orthonormalize(columns.mT.contiguous().mT, fallback=fallback)

    def advance_(self, prev: LowRankState, change: Tensor | None, low_rank_grad: Tensor) -> Descent:
        """m and v in place, and the factors that E and W are updated from."""
        if isinstance(self.chunk.step, Tensor):
            return advance_(self.chunk, prev, change, low_rank_grad)
        return _advance_in_place_(self.chunk, prev, change, low_rank_grad, step=self.chunk.step)

    def see_grad(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """U'G (B, r, n) and the squared length of each column of G (B, 1, n)."""
        seen = basis.new_zeros(len(basis), basis.shape[2], self.chunk.kind.n)
        squares = seen.new_zeros(len(basis), 1, self.chunk.kind.n)
        for matrix, each_basis, each_seen, each_square in zip(self.chunk.matrices, basis, seen, squares, strict=True):
            for rows in pieces(matrix.own_rows(matrix.grad)):
                grad = descent_grad(matrix, rows, seen.dtype, maximize=self.chunk.hyper.maximize)
                m_rows, n_cols = (slice(None), rows) if matrix.transposed else (rows, slice(None))
                each_seen[:, n_cols].addmm_(each_basis[m_rows].mT, grad)
                each_square[:, n_cols].add_(grad.square().sum(dim=-2, keepdim=True))
        return seen, squares

    def finish_(
        self, bases: list[Tensor], lost: list[Tensor], descent: Tensor, *, grad_scale: Tensor | None = None
    ) -> None:
        """E = A - [U, U_minus] lost and W = (1 - lr wd) W - U descent, less G by columns, in place."""
        chunk, corrected = self.chunk, self.corrected
        each_basis, each_lost = ([part.to(corrected.dtype).unbind() for part in parts] for parts in (bases, lost))
        descents, decay = descent.to(corrected.dtype).unbind(), chunk.hyper.lr * chunk.hyper.weight_decay
        for index, matrix in enumerate(chunk.matrices):
            if matrix.has_error:
                pairs = zip(each_basis, each_lost, strict=True)
                self._lose_(index, [(basis[index], factor[index]) for basis, factor in pairs])
            key = chunk.noise_key(index) if chunk.kind.rounds_by_chance else None
            factors = each_basis[0][index], descents[index], None if grad_scale is None else grad_scale[index]
            _descend_(matrix, *factors, decay=decay, maximize=chunk.hyper.maximize, key=key)

    def _lose_(self, index: int, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """E = A less the product of each pair of factors, stored; no copy of A is left."""
        error = self.corrected[index]
        for basis, factor in parts:
            error.addmm_(basis, factor, alpha=-1)
        self.corrected.keep_(index, error)


def _descend_(
    matrix: Matrix,
    basis: Tensor,
    factor: Tensor,
    grad_scale: Tensor | None,
    *,
    decay: float | Tensor,
    maximize: bool,
    key: int | Tensor | None,
) -> None:
    """W = (1 - lr wd) W - U descent - scale G, in place; rounded by chance with the noise of `key`, where there is one.

    By rows of the parameter, so that a copy in the dtype of the product is never one of the whole.
    """
    # Rounded once: not between two sums, and not the scale of G, which 16 bits may not hold.
    rounds_once = key is not None or grad_scale is not None
    param = matrix.own_rows(matrix.param)
    dtype = torch.promote_types(factor.dtype, torch.float32) if rounds_once else factor.dtype
    left, right = (factor.mT, basis.mT) if matrix.transposed else (basis, factor)
    left, right, cols = left.to(dtype), right.to(dtype), param.shape[1]
    for rows in pieces(param):
        weight = param[rows].to(dtype)
        if isinstance(decay, Tensor) or decay:
            weight.mul_(1 - (decay if matrix.accept is None else decay * matrix.accept.double()))
        weight.addmm_(left[rows], right, alpha=-1)
        if grad_scale is not None:
            grad, scale = descent_grad(matrix, rows, dtype, maximize=maximize), grad_scale.to(dtype)
            matrix.own_rows(weight).addcmul_(grad, scale[:, rows] if matrix.transposed else scale, value=-1)
        if key is not None:
            weight = stochastic_round(weight, param.dtype, key=key + rows.start * cols)
        if weight.dtype != param.dtype or key is not None:
            param[rows].copy_(weight)


def _advance_in_place_(
    chunk: Chunk, prev: LowRankState, change: Tensor | None, low_rank_grad: Tensor, *, step: float
) -> Descent:
    """`Products.advance_` with as few passes over r x n tensors as torch's kernels allow; consumes those of `prev`."""
    (beta1, beta2), hyper = chunk.hyper.betas, chunk.hyper
    exp_avg, exp_avg_sq, lost = prev.exp_avg, prev.exp_avg_sq, [low_rank_grad]
    if change is not None:
        # |Q.Q (v_hat - m_hat.m_hat) + (Q m_hat).(Q m_hat)| (1 - beta2^(t-1)), with v and m for v_hat and m_hat
        ratio = (1 - beta2 ** (step - 1)) / (1 - beta1 ** (step - 1)) ** 2 if step > 1 else 0.0
        exp_avg = change @ prev.exp_avg  # m_half
        variance = exp_avg_sq.addcmul_(prev.exp_avg, prev.exp_avg, value=-ratio)
        exp_avg_sq = (change.square() @ variance).addcmul_(exp_avg, exp_avg, value=ratio).abs_()  # v_half
        momentum = beta1 / (1 - beta1)  # c
        lost = [low_rank_grad.add(exp_avg, alpha=momentum), prev.exp_avg.mul_(-momentum)]
    exp_avg.lerp_(low_rank_grad, 1 - beta1)  # m
    exp_avg_sq.mul_(beta2).addcmul_(low_rank_grad, low_rank_grad, value=1 - beta2)  # v
    chunk.unstack_("exp_avg", exp_avg)
    chunk.unstack_("exp_avg_sq", exp_avg_sq)
    root_bias = (1 - beta2**step) ** 0.5
    lr = hyper.lr.double() if isinstance(hyper.lr, Tensor) else hyper.lr
    descent = exp_avg.div_(exp_avg_sq.sqrt_().add_(hyper.eps * root_bias)).mul_(lr * (root_bias / (1 - beta1**step)))
    return [accepted(chunk, factor) for factor in lost], accepted(chunk, descent)


def _products(left: Iterable[Tensor], right: Iterable[Tensor], *, out: Tensor) -> Tensor:
    """left right for each pair, in the dtype of `out`, in which 16-bit factors accumulate."""
    for one, other, result in zip(left, right, out.unbind(), strict=True):
        torch.mm(one, other, out=result, **({} if one.dtype == out.dtype else {"out_dtype": out.dtype}))
    return out
