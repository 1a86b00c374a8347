"""LDAdam in NumPy and float64, written from the equations of the paper, without looking at `ldadam`.

It is slow, handles one matrix, and repeats each equation as it is printed. Legend as in the paper: U is m x r, the
moments m and v are r x n, E is m x n; `minus` marks values of the previous step, `half` values between two bases.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Oracle:
    """One weight matrix in training."""

    def __init__(
        self,
        weight: Array,
        *,
        rank: int,
        lr: float,
        betas: tuple[float, float] = (0.908, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rho: float = 0.908,
        proj_type: str = "std",
        proj_method: str = "power_iteration",
        error_feedback: bool = True,
        update_interval: int = 1,
        maximize: bool = False,
    ):
        self.W = np.array(weight, dtype=np.float64)
        self.rank, self.lr, self.eps, self.weight_decay, self.rho = rank, lr, eps, weight_decay, rho
        self.beta1, self.beta2 = betas
        self.proj_method, self.error_feedback = proj_method, error_feedback
        self.update_interval, self.maximize = update_interval, maximize
        rows, cols = self.W.shape
        projects_columns = {"left": False, "right": True, "std": rows > cols, "reverse_std": rows < cols}
        self.transposed = projects_columns[proj_type]
        self.t = 0

    def step(self, gradient: Array) -> None:
        self.t += 1
        W = self.W.T if self.transposed else self.W
        G = np.asarray(gradient.T if self.transposed else gradient, dtype=np.float64)
        if self.maximize:
            G = -G
        d_W = self._low_rank_step(G)
        W = (1 - self.lr * self.weight_decay) * W - self.lr * d_W
        self.W = W.T if self.transposed else W

    def _low_rank_step(self, G: Array) -> Array:
        t, r, b1, b2, rho = self.t, self.rank, self.beta1, self.beta2, self.rho
        (m_dim, n_dim) = G.shape
        if t == 1:
            U_minus = np.zeros((m_dim, r))
            m_minus = np.zeros((r, n_dim))
            v_minus = np.zeros((r, n_dim))
            E = np.zeros((m_dim, n_dim))
        else:
            U_minus, m_minus, v_minus, E = self.U, self.m, self.v, self.E
        A = G + E
        m_hat = m_minus / (1 - b1 ** (t - 1)) if t > 1 else m_minus
        v_hat = v_minus / (1 - b2 ** (t - 1)) if t > 1 else v_minus

        moves = (t - 1) % self.update_interval == 0
        if t == 1:
            U = np.linalg.svd(A)[0][:, :r]
        elif not moves:
            U = U_minus
        else:
            B = rho * U_minus @ m_hat + (1 - rho) * A
            U = np.linalg.svd(B)[0][:, :r] if self.proj_method == "svd" else np.linalg.qr(B @ (B.T @ U_minus))[0]

        a = U.T @ A
        if moves:
            Q = U.T @ U_minus
            m_half = Q @ m_minus
            variance = (Q * Q) @ (v_hat - m_hat * m_hat)
            mean = Q @ m_hat
            v_half = (1 - b2 ** (t - 1)) * np.abs(variance + mean * mean)
        else:
            m_half, v_half = m_minus, v_minus
        self.m = b1 * m_half + (1 - b1) * a
        self.v = b2 * v_half + (1 - b2) * a * a
        self.U = U
        self.E = A - U @ a + b1 / (1 - b1) * (U_minus @ m_minus - U @ m_half)
        if not self.error_feedback:
            self.E = np.zeros((m_dim, n_dim))
        return U @ ((self.m / (1 - b1**t)) / (np.sqrt(self.v / (1 - b2**t)) + self.eps))
