"""Every tolerance of the suite, with the reason beside it. None is widened to make a test pass."""

TOLERANCES = {
    # The published class takes its QR and SVD in float32, which moves its own result by up to 5e-6 of the distance.
    "published trajectory": 2e-5,
    # Thirty float64 steps: 1e-16 a step, times the inverse of the singular gaps that decide a basis, about 1e3.
    "float64 trajectory": 1e-10,
    # The law is linear and the same `a` enters both sides: only rounding of a sum of thirty float64 terms is left.
    "float64 conservation": 1e-12,
    # Householder QR in float64 is orthonormal to a few units in the last place, times sqrt(r).
    "float64 orthonormal": 1e-13,
    # The same in float32, for up to 64 columns.
    "float32 orthonormal": 5e-6,
    # One float64 product, decomposition or change of formula.
    "float64 formula": 1e-12,
    # One float32 step: eps of 6e-8, times a sum of about a hundred terms.
    "float32 step": 1e-5,
    # The same float32 numbers summed in another order of memory, ten steps: products round differently, and a
    # near-zero second moment amplifies that.
    "float32 memory order": 1e-4,
    # Singular values 0.75^k, rank 6: three power iterations leave a sine of 0.75^6 = 0.18 in the weakest direction,
    # which has 2.5 % of the energy, so that 4e-4 of the norm is lost; two iterations lose 3e-3.
    "range finder captures": 0.999,
    # One step from one state: the same sums in another order, and Cholesky's factor for Householder's.
    "backend, float64, one step": 1e-12,
    "backend, float32, one step": 1e-5,
    # Storage rounds the buffer (2^-9 of it) and, in kernels, the factors subtracted from it; float16 2^-11.
    "backend, bfloat16, one step": 1e-2,
    "backend, float16, one step": 3e-3,
    # Differences pass through the basis, which amplifies them by the inverse of its spectral gaps.
    "backend, float64, many steps": 1e-10,
    # An entry of E that lies on a border goes to either of two neighbouring float32 numbers, as the processor's order
    # of sums has it: if all did, E would differ by the spacing of float32. One of them moves E by 2.6e-9 on AMD.
    "backend, float64 with a float32 buffer, many steps": 2.0**-23,
    "backend, float32, many steps": 1e-4,
    "backend, bfloat16, many steps": 5e-2,
    # The chance of a weight to be rounded up differs by the difference of the updates, in units in its last place:
    # 16-bit factors move an update of 1e-2 of a weight by 1e-3 of itself, where a unit is 1e-3 to 8e-3 of the weight.
    "backend, share of weights rounded differently": 5e-2,
    # Live tensors against those of the same step on meta: the bound; only 0-d tensors on the host may differ.
    "planned peak": 0.02,
    # Rotary factors, masks and per-token norms are left out of the formula, and weigh most in a hidden size of 128.
    "activation estimate": 0.02,
    # An entry, its quotient by the scale and its product with it are rounded in float32, at up to 127 levels: 127 eps.
    "codec, rounding of a level": 2e-5,
    # A bfloat16 scale is off by half a unit in its last place.
    "codec, scale": 2**-8,
    # Rounding relative to the norm of normal numbers: nothing lost, half a unit in the last place, and a level over
    # sqrt(12), where 2.5 standard deviations are 127 or 7 levels.
    "stored error, float64": 0.0,
    "stored error, float32": 0.0,
    "stored error, bfloat16": 2**-8,
    "stored error, int8": 7e-3,
    "stored error, int4": 1.2e-1,
    # Half a unit in the result's last place, and what a float32 sum of 40 products of size 5 leaves where it cancels.
    "bfloat16 product": 2**-8,
    "bfloat16 product, where it cancels": 1e-4,
    # Sums in another order move few elements by a unit of bfloat16, which five iterations carry on; of the update.
    "bfloat16 iterations": 2**-6,
    # A dozen steps of a tiny run in float32, whose micro-batches are summed in another order: of the loss, and of the
    # share that the subspace captures, which hangs on the basis.
    "learning curve, other order": 1e-4,
    "captured, other order": 1e-2,
    # Gradients of parts of a batch, summed over processes: other roundings of a few float32 units. Adam's first steps
    # divide each entry by its own size, so that the few entries that are as small as rounding move by lr either way.
    "float32 engine": 1e-3,
    # Half a level of 127 or 7, of a buffer about as large as a gradient, in each of eight steps, of the distance moved.
    "compressed, int8": 1e-2,
    "compressed, int4": 2e-1,
    # Of the norm of the error buffer: the same sums over ranks, seen through the basis.
    "error_norm, other order": 1e-2,
    # A hundred float64 steps: 1e-16 of rounding leaks into the subspace, where each step divides it by 10^2.
    "direction outside of the subspace": 1e-12,
}
