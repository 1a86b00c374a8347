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
    "backend, float32, many steps": 1e-4,
    "backend, bfloat16, many steps": 5e-2,
    # Live tensors against those of the same step on meta: the bound; only 0-d tensors on the host may differ.
    "planned peak": 0.02,
    # Rotary factors, masks and per-token norms are left out of the formula, and weigh most in a hidden size of 128.
    "activation estimate": 0.02,
}
