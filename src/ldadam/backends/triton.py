"""Six products with Triton kernels: each pass over the matrices of a chunk is one launch; no host synchronisation.

Source of the grouping by tables of addresses: Triton's grouped GEMM tutorial,
https://triton-lang.org/main/getting-started/tutorials/08-grouped-gemm.html.
"""

# A kernel's constants are passed as what they hold.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ldadam.algorithm import LowRankState
from ldadam.backends import batched, eager
from ldadam.backends.matrices import Chunk, chunks, common_step
from ldadam.backends.partial import run_alone
from ldadam.backends.six_products import Descent, Products, step_chunk_
from ldadam.backends.triton_launches import kernels
from ldadam.backends.triton_tables import Scalars, addresses_of, noise_keys
from ldadam.backends.triton_tiles import Tiles
from ldadam.backends.update import ParamUpdate
from ldadam.subspace import cholesky_qr

# Bytes of scratch, m x r and r x n, for the matrices stepped together: enough of them for a few thousand programs.
SCRATCH_BYTES = 512 * 2**20

# Up to this rank a program holds all r rows of its tile in registers, and beats cuBLAS at large products.
MAX_RANK_OF_PRODUCTS = 64

# Up to this rank it holds all r rows of a few columns, for the r x n chain.
MAX_RANK = 256

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Bits of a code by the dtype of its storage, where E is in codes.
_BITS = {torch.int8: 8, torch.uint8: 4}


def step_(updates: Sequence[ParamUpdate]) -> None:
    """Move each parameter and its state in place."""
    eager.step_([update for update in updates if batched.needs_page(update)])
    for one in products([update for update in updates if not batched.needs_page(update)]):
        run_alone(step_chunk_(one))


def products(updates: Sequence[ParamUpdate]) -> Iterator[Products]:
    """The products of each chunk of these parameters."""
    yield from batched.products([update for update in updates if not suits(update)])
    for chunk in chunks([update for update in updates if suits(update)], max_scratch=SCRATCH_BYTES):
        yield CublasProducts(chunk) if chunk.kind.rank > MAX_RANK_OF_PRODUCTS else TritonProducts(chunk)


def suits(update: ParamUpdate) -> bool:
    """Whether the kernels cover an update; the others go to the batched backend."""
    layout, error = update.layout, update.state.get("error_buffer")
    assert layout is not None
    in_codes = "error_scale" in update.state
    only_by_kernels = in_codes or update.rounds_by_chance
    return (
        not batched.needs_page(update)
        and not update.hyper.scaled_residual
        and eager.decomposition(update) is None
        and update.param.numel() > 0
        and error is not None
        and layout.rank <= (MAX_RANK_OF_PRODUCTS if only_by_kernels else MAX_RANK)
        and layout.m * layout.n < 2**31
        and all(tensor.dtype in _DTYPES for tensor in (update.param, update.grad))
        and update.param.stride() == update.grad.stride()
        and (in_codes or (error.dtype in _DTYPES and error.stride() == update.param.stride()))
        and (update.param.is_contiguous() or not only_by_kernels)
        and _stay_aligned(update)
    )


def _stay_aligned(update: ParamUpdate) -> bool:
    """Whether every matrix starts at a multiple of 16 bytes, as the kernels are told; views into buckets may not."""
    assert update.layout is not None
    tensors = [update.param, update.grad, *(update.state[name] for name in ("error_buffer", "exp_avg", "exp_avg_sq"))]
    return all(
        tensor.data_ptr() % 16 == 0 and (not update.layout.batch or tensor.stride(0) * tensor.element_size() % 16 == 0)
        for tensor in tensors
    )


def dense_step_(updates: Sequence[ParamUpdate]) -> None:
    """AdamW in place, all tensors of one size in one launch."""
    batched.dense_step_([update for update in updates if not _suits_dense(update)])
    groups: dict[tuple[object, ...], list[ParamUpdate]] = {}
    for update in updates:
        if _suits_dense(update):
            step = -1.0 if isinstance(update.step, Tensor) else update.step
            kind = (update.param.numel(), update.param.dtype, update.grad.dtype, update.param.device, step)
            groups.setdefault(kind, []).append(update)
    for same in groups.values():
        _dense_launch_(same)


def _suits_dense(update: ParamUpdate) -> bool:
    tensors = (update.param, update.grad)
    return update.param.numel() > 0 and all(
        tensor.dtype in _DTYPES and tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 for tensor in tensors
    )


def _dense_launch_(same: list[ParamUpdate]) -> None:
    first, block = same[0], 1024
    accepts = [accept for accept in (update.accepts() for update in same) if accept is not None]
    for update, accept in zip(same, accepts, strict=False):
        update.count_skip_(accept)
    scalars = Scalars(len(same), first.param.device, first.hyper, torch.stack(accepts) if accepts else None)
    tables = [
        addresses_of(tensors)
        for tensors in (
            [update.param for update in same],
            [update.grad for update in same],
            [update.state["exp_avg"] for update in same],
            [update.state["exp_avg_sq"] for update in same],
        )
    ]
    numbers = [update.number for update in same]
    keys = scalars.accepts
    if first.rounds_by_chance:
        first_entries = [update.first_entry for update in same]
        keys = noise_keys(numbers, first_entries, common_step(same), first.param.device)
    kernels.dense_kernel[(_ceil_div(first.param.numel(), block), len(same))](
        *tables, scalars.biases(common_step(same)), scalars.accepts, scalars.decays, keys, scalars.scale,
        first.param.numel(), *first.hyper.betas, first.hyper.eps, -1.0 if first.hyper.maximize else 1.0,
        WEIGHT=first.param.dtype, GRAD=first.grad.dtype,
        MASKED=scalars.masked, BY_CHANCE=first.rounds_by_chance, BLOCK=block,
    )  # fmt: skip


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Launches:
    """What the launches for one chunk share, and those of the r x n chain."""

    def __init__(self, chunk: Chunk):
        self.chunk = chunk
        first = chunk.matrices[0]
        error = first.stored_error
        assert error is not None
        self.count, self.device = len(chunk.matrices), first.param.device
        self.m, self.n, self.rank = chunk.kind.m, chunk.kind.n, chunk.kind.rank
        self.strides = first.param.stride()
        self.padded_rank = max(16, _next_power_of_2(self.rank))
        self.bits, self.error_dtype = _BITS.get(error.dtype, 0), error.dtype
        # A enters products in the dtype of the buffer that it replaces or, added up in registers, of the gradient.
        self.product_dtype = first.grad.dtype if self.bits else error.dtype
        has_float32 = torch.float32 in (self.product_dtype, first.param.dtype)
        self.factor_dtype = torch.float32 if has_float32 else self.product_dtype
        self.tiles = Tiles(self.padded_rank, self.strides[1] == 1, self.product_dtype.itemsize, self.bits > 0)
        self.scalars = Scalars(self.count, self.device, chunk.hyper, chunk.accept)
        self.biases = self.scalars.biases(chunk.step)

    def _addresses(self, name: str) -> Tensor:
        return addresses_of([getattr(matrix, name) for matrix in self.chunk.matrices])

    def target_rows(self, prev: LowRankState, projected: Tensor) -> Tensor:
        """Y' (B, r, n), up to a scale of each row, in one kernel."""
        rows = torch.empty_like(projected)
        kernels.target_kernel[(self.rank, self.count)](
            projected, self._addresses("exp_avg"), self.biases, rows, self.n, self.rank, self.chunk.hyper.rho,
            BLOCK=1024,
        )  # fmt: skip
        return rows

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """left right' (B, r, r) for (B, r, l) tensors of any strides over one matrix."""
        if self.rank > 128:
            return left @ right.mT
        length, part = left.shape[-1], 1024
        parts = _ceil_div(length, part)
        products = left.new_empty(self.count, parts, self.rank, self.rank)
        kernels.inner_kernel[(parts, self.count)](
            left, right, products, length, part, self.rank, *left.stride()[1:], *right.stride()[1:],
            R=self.padded_rank, BLOCK=64 if self.rank <= 64 else 32, num_warps=4 if self.rank <= 64 else 8,
        )  # fmt: skip
        return products.sum(1)

    def orthonormalize(self, columns: Tensor, *, fallback: Tensor) -> Tensor:
        """orth(X) (B, m, r), and the fallback where X is all zero."""
        return cholesky_qr(columns, fallback=fallback, inner=self.inner)

    def advance_(self, prev: LowRankState, change: Tensor | None, low_rank_grad: Tensor) -> Descent:
        """m and v in place, in one kernel; what E loses in U and in U_minus is one (B, 2r, n) tensor."""
        moves, hyper = change is not None, self.chunk.hyper
        descent = torch.empty_like(low_rank_grad, dtype=self.factor_dtype)
        right = descent.new_empty(self.count, self.rank * (2 if moves else 1), self.n)
        block = 64 if self.rank <= 64 else 32
        kernels.moments_kernel[(_ceil_div(self.n, block), self.count)](
            low_rank_grad, change if moves else low_rank_grad,
            self._addresses("exp_avg"), self._addresses("exp_avg_sq"),
            descent, right, self.biases, self.scalars.accepts,
            self.n, self.rank, *hyper.betas, hyper.eps, self.scalars.scale,
            MOVES=moves, MASKED=self.scalars.masked, FACTOR=self.factor_dtype,
            R=self.padded_rank, BLOCK_N=block, BLOCK_K=min(32, self.padded_rank),
            num_warps=4 if self.rank <= 64 else 8, num_stages=2,
        )  # fmt: skip
        return [right], descent


class TritonProducts(_Launches):
    """Large products by kernels over all matrices of a chunk."""

    def __init__(self, chunk: Chunk):
        super().__init__(chunk)
        errors = self._addresses("stored_error")
        scales = [matrix.quantized.scales for matrix in chunk.matrices if matrix.quantized is not None]
        # Where E is float, a table of scales is passed on but not read.
        self.tables = (
            self._addresses("grad"),
            errors,
            addresses_of(scales) if scales else errors,
            self.scalars.accepts,
        )
        self.sign = -1.0 if chunk.hyper.maximize else 1.0
        self.storage = {
            "GRAD": chunk.matrices[0].grad.dtype,
            "ERROR": self.error_dtype,
            "PRODUCT": self.product_dtype,
            "BITS": self.bits,
            "ALONG_N": self.strides[1] == 1,
            "MASKED": self.scalars.masked,
        }

    def corrected_grads(self) -> Tensor:
        """Not asked of these products: `suits` leaves bases that come from a decomposition to the others."""
        raise NotImplementedError

    def correct(self, basis: Tensor) -> Tensor:
        """A = G + E in the storage of E where that is float, and U'A (B, r, n), in one pass."""
        return self._project(basis, add=True)

    def project(self, basis: Tensor) -> Tensor:
        """U'A (B, r, n) from U (B, m, r)."""
        return self._project(basis, add=self.bits > 0)

    def _project(self, basis: Tensor, *, add: bool) -> Tensor:
        rows = basis.new_empty(self.count, self.rank, self.n)
        config = self.tiles.project(adds=add)
        kernels.project_kernel[(_ceil_div(self.n, config["BLOCK_N"]), self.count)](
            *self.tables, basis, rows, self.m, self.n, self.rank, *self.strides, self.sign,
            ADD=add, R=self.padded_rank, **self.storage, **config,
        )  # fmt: skip
        return rows

    def lift(self, rows: Tensor) -> Tensor:
        """A Y (B, m, r) from Y' (B, r, n)."""
        rows = rows.contiguous()
        columns = rows.new_empty(self.count, self.m, self.rank)
        config = self.tiles.lift()
        kernels.lift_kernel[(_ceil_div(self.m, config["BLOCK_M"]), self.count)](
            *self.tables, rows, columns, self.m, self.n, self.rank, *self.strides, self.sign,
            R=self.padded_rank, **self.storage, **config,
        )  # fmt: skip
        return columns

    def see_grad(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Not asked of these products: `suits` leaves `scaled_residual` to the others."""
        raise NotImplementedError

    def finish_(
        self, bases: list[Tensor], lost: list[Tensor], descent: Tensor, *, grad_scale: Tensor | None = None
    ) -> None:
        """E = A - [U, U_minus] lost and W = (1 - lr wd) W - U descent, in one pass over both."""
        assert grad_scale is None
        weight = self.chunk.matrices[0].param
        factors = (torch.cat(bases, dim=-1), *lost, descent)
        left, right, descent = (factor.to(self.factor_dtype).contiguous() for factor in factors)
        config = self.tiles.finish(factor_itemsize=self.factor_dtype.itemsize)
        tiles = _ceil_div(self.m, config["BLOCK_M"]) * _ceil_div(self.n, config["BLOCK_N"])
        by_chance = self.chunk.kind.rounds_by_chance
        kernels.finish_kernel[(tiles, self.count)](
            *self.tables, self._addresses("param"), left, right, descent, self.scalars.decays,
            self._noise_keys() if by_chance else self.scalars.accepts,
            self.m, self.n, self.rank, left.shape[-1], *self.strides, *weight.stride(), self.sign,
            WEIGHT=weight.dtype, BY_CHANCE=by_chance, MOVES=left.shape[-1] > self.rank,
            PRECISION="tf32x3", **self.storage, **config,
        )  # fmt: skip

    def _noise_keys(self) -> Tensor:
        matrices = self.chunk.matrices
        places = [matrix.number for matrix in matrices], [matrix.first_entry for matrix in matrices]
        return noise_keys(*places, self.chunk.step, self.device)


class CublasProducts(_Launches, batched.TorchProducts):
    """Large products one matrix at a time by cuBLAS, which is faster at large ranks; the r x n chain by kernels."""

    def advance_(self, prev: LowRankState, change: Tensor | None, low_rank_grad: Tensor) -> Descent:
        """m and v in place, in one kernel, and the factors that E and W are updated from."""
        (both,), descent = super().advance_(prev, change, low_rank_grad)
        return list(both.split(self.rank, dim=-2)), descent
