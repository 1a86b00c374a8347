"""What a step must move and compute at the least, and what its optimizer keeps.

For a low-rank matrix W (m x n) with gradient G, buffer E and rank r, six products need

    read G, read and write E            A = G + E, with U_minus' A in the same pass
    read E, twice                       X = A Y, a = U' A
    read and write E, read and write W  E = A - [U, U_minus] [...], W = (1 - lr wd) W - U (lr d)

that is G + 6 E + 2 W, and the small state (U, m, v) once in and once out. AdamW needs G + 2 W + 2 m + 2 v. Temporaries,
and tiles read twice, are not counted: they lower the rate that is reported, as they should.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn import Parameter

from ldadam.bench.subjects import Stepper
from ldadam.storages import storage_bytes, tensors_in

# Operations of AdamW for one weight: three for m, four for v, five for the direction, three for the weight.
ADAMW_OPERATIONS = 15


class Cost(NamedTuple):
    """Of one step."""

    num_bytes: int
    num_operations: int


def step_cost(stepper: Stepper, params: list[Parameter]) -> Cost:
    """The least bytes and operations of an LDAdamW or AdamW step, from the state that it keeps."""
    costs = [_param_cost(param, stepper.state[param]) for param in params]
    return Cost(sum(cost.num_bytes for cost in costs), sum(cost.num_operations for cost in costs))


def _param_cost(param: Parameter, state: Mapping[str, Tensor]) -> Cost:
    assert param.grad is not None
    moments = 2 * (state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes)
    weight_and_grad = param.grad.nbytes + 2 * param.nbytes
    if "basis" not in state:
        return Cost(weight_and_grad + moments, ADAMW_OPERATIONS * param.numel())
    m, r = state["basis"].shape
    n = state["exp_avg"].shape[-1]
    small = moments + 2 * state["basis"].nbytes
    return Cost(weight_and_grad + 6 * state["error_buffer"].nbytes + small, low_rank_operations(m, n, r))


def low_rank_operations(m: int, n: int, r: int) -> int:
    """Multiplications and additions of one low-rank matrix.

    With A: U_minus' A, A Y and U' A, 2mnr each; E, 4mnr; W, 2mnr. Beside it: m_hat Y, Q m_hat and Q^2 var, 2nr^2 each;
    U_minus (m_hat Y) and Q, 2mr^2 each; and 4mr^2 to orthonormalize, by QR, or by one of Cholesky-QR's two rounds.
    """
    return 12 * m * n * r + 6 * n * r**2 + 8 * m * r**2


def state_bytes(stepper: Stepper) -> int:
    """Bytes of all storages that the state keeps alive, those inside of projectors and quantised tensors too."""
    return storage_bytes(tensor for state in stepper.state.values() for tensor in tensors_in(state))
