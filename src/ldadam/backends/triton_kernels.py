"""Triton kernels of the six products, over all matrices of a chunk in one launch each.

Large matrices are reached through tables of addresses, small state is stacked. Programs are (tile, matrix). Every dot
accumulates in float32. Its inputs: where the basis is found and A projected, a float32 factor of 16-bit A is split into
two 16-bit halves, so that 16 bits of its mantissa count; what is then subtracted from 16-bit E and W is 16-bit itself;
with float32 E, `tf32x3` keeps float32's accuracy throughout.
"""

# The signatures are Triton's: untyped, with constants in capitals.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false

import triton
import triton.language as tl

from ldadam.backends.triton_storage import load_corrected, matrix_pointer, scale_pointer, stochastic_round, store_codes


@triton.jit
def accurate_dot(factor, tile, accumulator):
    """accumulator + factor @ tile, for a float32 factor and a tile of any dtype."""
    if tile.dtype == tl.float32:
        return tl.dot(factor, tile, accumulator, input_precision="tf32x3")
    high = factor.to(tile.dtype)
    low = (factor - high.to(tl.float32)).to(tile.dtype)
    return tl.dot(low, tile, tl.dot(high, tile, accumulator))


@triton.jit
def project_kernel(
    grads, errors, scales, accepts, basis, rows, m, n, r, stride_m, stride_n, sign,
    GRAD: tl.constexpr, ERROR: tl.constexpr, PRODUCT: tl.constexpr, BITS: tl.constexpr, ALONG_N: tl.constexpr,
    MASKED: tl.constexpr, ADD: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """rows (B, r, n) = U'A. With ADD, A = sign G + E, which replaces a float E; else A is what `errors` holds."""
    index = tl.program_id(1).to(tl.int64)
    col = tl.program_id(0) * BLOCK_N
    cols = col + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, R)
    grad, error = matrix_pointer(grads, index, GRAD), matrix_pointer(errors, index, ERROR)
    scale = scale_pointer(scales, index)
    grad_lines = m * tl.load(accepts + index).to(tl.int32) if MASKED else m
    basis += index * m * r
    accumulator = tl.zeros((R, BLOCK_N), dtype=tl.float32)
    for start in range(0, m, BLOCK_M):
        lines = start + tl.arange(0, BLOCK_M)
        tile = load_corrected(
            grad, error, scale, start, col, m, n, grad_lines, stride_m, stride_n, sign,
            ADD, BITS, ALONG_N, BLOCK_M, BLOCK_N,
        ).to(PRODUCT)  # fmt: skip
        if ADD and BITS == 0:
            at = lines[:, None] * stride_m + cols[None, :] * stride_n
            tl.store(error + at, tile, mask=(lines[:, None] < m) & (cols[None, :] < n))
        factor = tl.load(
            basis + lines[None, :] * r + ranks[:, None], mask=(lines[None, :] < m) & (ranks[:, None] < r), other=0.0
        )
        accumulator = accurate_dot(factor, tile, accumulator)
    kept = (ranks[:, None] < r) & (cols[None, :] < n)
    tl.store(rows + index * r * n + ranks[:, None] * n + cols[None, :], accumulator, mask=kept)


@triton.jit
def lift_kernel(
    grads, errors, scales, accepts, rows, columns, m, n, r, stride_m, stride_n, sign,
    GRAD: tl.constexpr, ERROR: tl.constexpr, PRODUCT: tl.constexpr, BITS: tl.constexpr, ALONG_N: tl.constexpr,
    MASKED: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """columns (B, m, r) = A Y from rows Y' (B, r, n)."""
    index = tl.program_id(1).to(tl.int64)
    line = tl.program_id(0) * BLOCK_M
    lines = line + tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, R)
    grad, error = matrix_pointer(grads, index, GRAD), matrix_pointer(errors, index, ERROR)
    scale = scale_pointer(scales, index)
    grad_lines = m * tl.load(accepts + index).to(tl.int32) if MASKED else m
    rows += index * r * n
    accumulator = tl.zeros((R, BLOCK_M), dtype=tl.float32)
    for start in range(0, n, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        tile = load_corrected(
            grad, error, scale, line, start, m, n, grad_lines, stride_m, stride_n, sign,
            BITS > 0, BITS, ALONG_N, BLOCK_M, BLOCK_N,
        ).to(PRODUCT)  # fmt: skip
        factor = tl.load(
            rows + ranks[:, None] * n + cols[None, :], mask=(ranks[:, None] < r) & (cols[None, :] < n), other=0.0
        )
        accumulator = accurate_dot(factor, tl.trans(tile), accumulator)
    kept = (ranks[:, None] < r) & (lines[None, :] < m)
    tl.store(columns + index * m * r + lines[None, :] * r + ranks[:, None], accumulator, mask=kept)


@triton.jit
def finish_kernel(
    grads, errors, scales, accepts, weights, left, right, descent, decays, keys, m, n, r, k,
    stride_m, stride_n, weight_stride_m, weight_stride_n, sign,
    GRAD: tl.constexpr, ERROR: tl.constexpr, PRODUCT: tl.constexpr, BITS: tl.constexpr, ALONG_N: tl.constexpr,
    MASKED: tl.constexpr, WEIGHT: tl.constexpr, BY_CHANCE: tl.constexpr, MOVES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of E = A - left right and of W = decay W - U descent; left (m, k) is [U, U_minus] if MOVES, else U.

    PRODUCT has no meaning here: A is what it is stored as, or float32.
    """
    index = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(n, BLOCK_N)
    line, col = (tl.program_id(0) // tiles) * BLOCK_M, (tl.program_id(0) % tiles) * BLOCK_N
    lines = line + tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_N)
    inside = (lines[:, None] < m) & (cols[None, :] < n)
    grad, error = matrix_pointer(grads, index, GRAD), matrix_pointer(errors, index, ERROR)
    scale = scale_pointer(scales, index)
    grad_lines = m * tl.load(accepts + index).to(tl.int32) if MASKED else m
    weight_entry = lines[:, None] * weight_stride_m + cols[None, :] * weight_stride_n
    weight_at = matrix_pointer(weights, index, WEIGHT) + weight_entry
    corrected = load_corrected(
        grad, error, scale, line, col, m, n, grad_lines, stride_m, stride_n, sign,
        BITS > 0, BITS, ALONG_N, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    weight = tl.load(weight_at, mask=inside, other=0.0)
    left += index * m * k
    right += index * k * n
    descent += index * r * n
    lost = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    moved = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, r, BLOCK_K):
        ranks = start + tl.arange(0, BLOCK_K)
        left_mask = (lines[:, None] < m) & (ranks[None, :] < r)
        right_mask = (ranks[:, None] < r) & (cols[None, :] < n)
        left_at = left + lines[:, None] * k + ranks[None, :]
        right_at = ranks[:, None] * n + cols[None, :]
        basis = tl.load(left_at, mask=left_mask, other=0.0)
        moved = tl.dot(basis, tl.load(descent + right_at, mask=right_mask, other=0.0), moved, input_precision=PRECISION)
        lost = tl.dot(basis, tl.load(right + right_at, mask=right_mask, other=0.0), lost, input_precision=PRECISION)
        if MOVES:
            basis = tl.load(left_at + r, mask=left_mask, other=0.0)
            bottom = tl.load(right + r * n + right_at, mask=right_mask, other=0.0)
            lost = tl.dot(basis, bottom, lost, input_precision=PRECISION)
    missed = corrected.to(tl.float32) - lost
    if BITS == 0:
        tl.store(error + lines[:, None] * stride_m + cols[None, :] * stride_n, missed.to(ERROR), mask=inside)
    elif ALONG_N:
        store_codes(error, scale, missed, line, col, m, n, BITS, BLOCK_M, BLOCK_N)
    else:
        store_codes(error, scale, tl.trans(missed), col, line, n, m, BITS, BLOCK_N, BLOCK_M)
    weight = weight.to(tl.float32) * tl.load(decays + index) - moved
    if BY_CHANCE:
        weight = stochastic_round(weight, tl.load(keys + index), weight_entry, WEIGHT)
    tl.store(weight_at, weight.to(WEIGHT), mask=inside)


@triton.jit
def inner_kernel(
    left, right, products, length, part, r, left_stride_r, left_stride_l, right_stride_r, right_stride_l,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """products (B, parts, r, r) = left right' over each part of the length of r vectors, to be summed."""
    index = tl.program_id(1).to(tl.int64)
    ranks = tl.arange(0, R)
    left += index * length * r
    right += index * length * r
    begin = tl.program_id(0) * part
    end = tl.minimum(begin + part, length)
    accumulator = tl.zeros((R, R), dtype=tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = (ranks[:, None] < r) & (at[None, :] < end)
        first = tl.load(left + ranks[:, None] * left_stride_r + at[None, :] * left_stride_l, mask=mask, other=0.0)
        second = tl.load(right + ranks[:, None] * right_stride_r + at[None, :] * right_stride_l, mask=mask, other=0.0)
        accumulator = tl.dot(first, tl.trans(second), accumulator, input_precision="tf32x3")
    kept = (ranks[:, None] < r) & (ranks[None, :] < r)
    products += (index * tl.num_programs(0) + tl.program_id(0)) * r * r
    tl.store(products + ranks[:, None] * r + ranks[None, :], accumulator, mask=kept)


@triton.jit
def target_kernel(projected, exp_avgs, biases, rows, n, r, rho, BLOCK: tl.constexpr):
    """rows (B, r, n) = rho m_hat + (1 - rho) U_minus'A, each row divided by its largest absolute entry."""
    index = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * n
    exp_avg = matrix_pointer(exp_avgs, index, tl.float32) + row
    projected += index * r * n + row
    rows += index * r * n + row
    bias = tl.load(biases + index * 4)
    weight = rho / tl.where(bias == 0, 1.0, bias)
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        target = target_block(projected, exp_avg, weight, rho, at, n)
        largest = tl.maximum(largest, tl.abs(target))
    scale = tl.max(largest, axis=0)
    scale = 1.0 / tl.where(scale > 0, scale, 1.0)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        target = target_block(projected, exp_avg, weight, rho, at, n)
        tl.store(rows + at, target * scale, mask=at < n)


@triton.jit
def target_block(projected, exp_avg, weight, rho, at, n):
    """Part of one row of rho m_hat + (1 - rho) U_minus'A."""
    avg = tl.load(exp_avg + at, mask=at < n, other=0.0)
    return weight * avg + (1 - rho) * tl.load(projected + at, mask=at < n, other=0.0)


@triton.jit
def moments_kernel(
    low_rank_grad, change, exp_avgs, exp_avg_sqs, descent, right, biases, accepts, n, r, beta1, beta2, eps, scale,
    MOVES: tl.constexpr, MASKED: tl.constexpr, FACTOR: tl.constexpr,
    R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The r x n chain: m_half, v_half, m, v in place, and the factors of W (lr d) and E ([a + c m_half; -c m_minus]).

    `biases` holds 1 - beta1^(t-1), 1 - beta2^(t-1), 1 - beta1^t, 1 - beta2^t of each matrix; `scale` is lr. A program
    has all rows of its columns, so that it may write them in place.
    """
    index = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, R)
    inside = (ranks[:, None] < r) & (cols[None, :] < n)
    at = ranks[:, None] * n + cols[None, :]
    avg_matrix = matrix_pointer(exp_avgs, index, tl.float32)
    sq_matrix = matrix_pointer(exp_avg_sqs, index, tl.float32)
    grad = tl.load(low_rank_grad + index * r * n + at, mask=inside, other=0.0)
    old_avg = tl.load(avg_matrix + at, mask=inside, other=0.0)
    old_sq = tl.load(sq_matrix + at, mask=inside, other=0.0)
    old_bias1, old_bias2 = tl.load(biases + index * 4), tl.load(biases + index * 4 + 1)
    bias1, bias2 = tl.load(biases + index * 4 + 2), tl.load(biases + index * 4 + 3)
    carried, carried_sq = old_avg, old_sq
    if MOVES:
        rotated = tl.zeros((R, BLOCK_N), dtype=tl.float32)
        spread = tl.zeros((R, BLOCK_N), dtype=tl.float32)
        for start in range(0, r, BLOCK_K):
            inner = start + tl.arange(0, BLOCK_K)
            part = inner[:, None] * n + cols[None, :]
            mask = (inner[:, None] < r) & (cols[None, :] < n)
            hat = tl.load(avg_matrix + part, mask=mask, other=0.0) / tl.where(old_bias1 == 0, 1.0, old_bias1)
            variance = tl.load(sq_matrix + part, mask=mask, other=0.0) / tl.where(old_bias2 == 0, 1.0, old_bias2)
            variance -= hat * hat
            rotation = tl.load(
                change + index * r * r + ranks[:, None] * r + inner[None, :],
                mask=(ranks[:, None] < r) & (inner[None, :] < r),
                other=0.0,
            )
            rotated = tl.dot(rotation, hat, rotated, input_precision="tf32x3")
            spread = tl.dot(rotation * rotation, variance, spread, input_precision="tf32x3")
        carried = rotated * old_bias1
        carried_sq = tl.abs(spread + rotated * rotated) * old_bias2
    exp_avg = beta1 * carried + (1 - beta1) * grad
    exp_avg_sq = beta2 * carried_sq + (1 - beta2) * grad * grad
    direction = (exp_avg / bias1) / (tl.sqrt(exp_avg_sq / bias2) + eps) * tl.load(scale)
    ratio = beta1 / (1 - beta1) if MOVES else 0.0
    top, bottom = grad + ratio * carried, -ratio * old_avg
    if MASKED:
        accept = tl.load(accepts + index) != 0
        exp_avg, exp_avg_sq = tl.where(accept, exp_avg, old_avg), tl.where(accept, exp_avg_sq, old_sq)
        direction, top, bottom = tl.where(accept, direction, 0), tl.where(accept, top, 0), tl.where(accept, bottom, 0)
    tl.store(avg_matrix + at, exp_avg, mask=inside)
    tl.store(sq_matrix + at, exp_avg_sq, mask=inside)
    tl.store(descent + index * r * n + at, direction.to(FACTOR), mask=inside)
    if MOVES:
        tl.store(right + index * 2 * r * n + at, top.to(FACTOR), mask=inside)
        tl.store(right + index * 2 * r * n + r * n + at, bottom.to(FACTOR), mask=inside)
    else:
        tl.store(right + index * r * n + at, top.to(FACTOR), mask=inside)


@triton.jit
def dense_kernel(
    weights, grads, exp_avgs, exp_avg_sqs, biases, accepts, decays, keys, scale, size, beta1, beta2, eps, sign,
    WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASKED: tl.constexpr, BY_CHANCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """AdamW of dense parameters of one size, in place, with float32 moments."""
    index = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    param_at = matrix_pointer(weights, index, WEIGHT) + at
    exp_avg_at = matrix_pointer(exp_avgs, index, tl.float32) + at
    exp_avg_sq_at = matrix_pointer(exp_avg_sqs, index, tl.float32) + at
    grad = tl.load(matrix_pointer(grads, index, GRAD) + at, mask=inside, other=0.0).to(tl.float32) * sign
    param = tl.load(param_at, mask=inside, other=0.0).to(tl.float32)
    old_avg = tl.load(exp_avg_at, mask=inside, other=0.0)
    old_avg_sq = tl.load(exp_avg_sq_at, mask=inside, other=0.0)
    bias1, bias2 = tl.load(biases + index * 4 + 2), tl.load(biases + index * 4 + 3)
    exp_avg = beta1 * old_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * old_avg_sq + (1 - beta2) * grad * grad
    direction = (exp_avg / bias1) / (tl.sqrt(exp_avg_sq / bias2) + eps) * tl.load(scale)
    moved = param * tl.load(decays + index) - direction
    if MASKED:
        accept = tl.load(accepts + index) != 0
        moved = tl.where(accept, moved, param)
        exp_avg, exp_avg_sq = tl.where(accept, exp_avg, old_avg), tl.where(accept, exp_avg_sq, old_avg_sq)
    if BY_CHANCE:
        moved = stochastic_round(moved, tl.load(keys + index), at, WEIGHT)
    tl.store(param_at, moved.to(WEIGHT), mask=inside)
    tl.store(exp_avg_at, exp_avg, mask=inside)
    tl.store(exp_avg_sq_at, exp_avg_sq, mask=inside)
