"""The optimizer and the page against an independent NumPy implementation, in float64."""

import numpy as np
import pytest
import torch

from builders import PLAIN_BACKENDS, SHAPES, distance, gradients, parameter, take_step
from ldadam import LDAdamW
from ldadam.algorithm import LowRankState, descend, ldadam_step
from ldadam.subspace import random_basis, top_singular_vectors
from oracle import Oracle
from tolerances import TOLERANCES

NUM_STEPS = 20
VARIANTS = {
    "defaults": {},
    "svd": {"proj_method": "svd"},
    "interval": {"update_interval": 5},
    "svd with interval": {"proj_method": "svd", "update_interval": 3},
    "no error feedback": {"error_feedback": False},
    "decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "longer side": {"proj_type": "reverse_std"},
    "rows": {"proj_type": "left"},
    "columns": {"proj_type": "right"},
    "other moments": {"betas": (0.7, 0.95), "rho": 0.3, "eps": 1e-4},
}


def assert_follows_oracle(shape: tuple[int, int], *, backend: str, rank: int, **options) -> None:
    param = parameter(*shape, dtype=torch.float64)
    start = param.detach().clone()
    oracle = Oracle(start.numpy(), rank=rank, lr=0.02, **options)
    optimizer = LDAdamW([param], lr=0.02, rank=rank, backend=backend, **options)
    for step, grad in enumerate(gradients(shape, NUM_STEPS, dtype=torch.float64), start=1):
        take_step(optimizer, [param], [grad])
        oracle.step(grad.numpy())
        moved = torch.tensor(oracle.W) - start
        assert distance(param.detach() - start, moved) <= TOLERANCES["float64 trajectory"], f"weights, step {step}"
        if optimizer.param_groups[0]["error_feedback"]:
            expected = torch.tensor(oracle.E.T if oracle.transposed else oracle.E)
            error = optimizer.state[param]["error_buffer"]
            assert distance(error, expected) <= TOLERANCES["float64 trajectory"], f"error buffer, step {step}"


@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 4, "shorter side - 1"])
def test_every_shape_and_rank_follows_the_oracle(shape, rank, backend):
    assert_follows_oracle(shape, backend=backend, rank=min(shape) - 1 if isinstance(rank, str) else rank)


@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
@pytest.mark.parametrize("shape", [(12, 21), (21, 12)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_follows_the_oracle(shape, variant, backend):
    assert_follows_oracle(shape, backend=backend, rank=3, **VARIANTS[variant])


def test_the_page_follows_the_oracle_without_any_optimizer():
    m, n, rank = 12, 21, 3
    start = parameter(m, n, dtype=torch.float64).detach()
    oracle = Oracle(start.numpy(), rank=rank, lr=0.02, weight_decay=0.1)
    weight, zeros = start, torch.zeros(rank, n, dtype=torch.float64)
    state = LowRankState(random_basis(m, rank).double(), zeros, zeros, torch.zeros(m, n, dtype=torch.float64))
    for step, grad in enumerate(gradients((m, n), NUM_STEPS, dtype=torch.float64), start=1):
        first = {"next_basis": top_singular_vectors} if step == 1 else {}
        update, state = ldadam_step(grad, state, step=step, betas=(0.908, 0.99), eps=1e-8, rho=0.908, **first)
        weight = descend(weight, update, lr=0.02, weight_decay=0.1)
        oracle.step(grad.numpy())
        assert distance(weight - start, torch.tensor(oracle.W) - start) <= TOLERANCES["float64 trajectory"]
        np.testing.assert_allclose(
            (state.basis @ state.exp_avg).numpy(), oracle.U @ oracle.m, atol=TOLERANCES["float64 trajectory"]
        )
