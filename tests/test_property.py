"""Whatever the shapes, ranks, dtypes and groups: no step raises, nothing is lost, and state comes back."""

import math

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from builders import PLAIN_BACKENDS, assert_same_state, copies, distance, grads_of, live_bytes, parameter, quiet, run
from ldadam import LDAdamW, describe
from tolerances import TOLERANCES

FAST = settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

SHAPES = st.one_of(
    st.tuples(st.integers(1, 65), st.integers(1, 130)),
    st.tuples(),
    st.tuples(st.integers(0, 40)),
    st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3)),
)
RANKS = st.one_of(st.none(), st.integers(1, 70), st.floats(0.01, 0.99))
OPTIONS = st.fixed_dictionaries(
    {
        "rank": RANKS,
        "proj_type": st.sampled_from(["std", "reverse_std", "left", "right"]),
        "proj_method": st.sampled_from(["power_iteration", "svd"]),
        "error_feedback": st.booleans(),
        "error_dtype": st.sampled_from([None, "float32", "bfloat16", "int8", "int4"]),
        "update_interval": st.integers(1, 3),
        "betas": st.sampled_from([(0.908, 0.99), (0.0, 0.5), (0.9, 0.0)]),
        "rho": st.sampled_from([0.0, 0.5, 0.908]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "maximize": st.booleans(),
        "skip_nonfinite": st.booleans(),
        "stochastic_rounding": st.booleans(),
        "backend": st.sampled_from(PLAIN_BACKENDS),
    }
)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
GROUPS = st.lists(st.tuples(SHAPES, DTYPES, OPTIONS), min_size=1, max_size=3)


def build(groups) -> tuple[list[Parameter], LDAdamW]:
    params = [parameter(*shape, seed=i, dtype=dtype) for i, (shape, dtype, _) in enumerate(groups)]
    described = [{"params": [param], **options} for param, (_, _, options) in zip(params, groups, strict=True)]
    return params, quiet(described, lr=0.01)


@FAST
@given(GROUPS)
def test_every_step_is_finite_and_every_planned_byte_is_live(groups):
    params, optimizer = build(groups)
    planned = sum(describe(optimizer).state_bytes.values())
    run(optimizer, params, grads_of(params, 3))
    for param in params:
        assert param.isfinite().all()
        assert all(value.isfinite().all() for value in optimizer.state[param].values())
    assert live_bytes(optimizer) == planned


@FAST
@given(GROUPS)
def test_state_comes_back_as_it_was_and_the_run_goes_on(groups):
    params, optimizer = build(groups)
    run(optimizer, params, grads_of(params, 2))
    others, (_, other) = copies(params), build(groups)
    for group, param in zip(other.param_groups, others, strict=True):
        group["params"] = [param]
    other.load_state_dict(optimizer.state_dict())
    assert_same_state(other, optimizer)
    for some_optimizer, some in ((optimizer, params), (other, others)):
        run(some_optimizer, some, grads_of(some, 2, seed=3))
    assert_same_state(other, optimizer)


@FAST
@given(
    st.tuples(st.integers(2, 65), st.integers(2, 130)),
    st.one_of(st.integers(1, 64), st.floats(0.01, 0.99)),
    st.sampled_from(["std", "reverse_std"]),
    st.sampled_from(["power_iteration", "svd"]),
    st.integers(1, 3),
    st.sampled_from(PLAIN_BACKENDS),
)
@example((63, 100), 62, "std", "power_iteration", 1, PLAIN_BACKENDS[-1])
def test_no_gradient_is_lost(shape, rank, proj_type, proj_method, update_interval, backend):
    """Sum of gradients = sum of applied momenta + what the buffer and the last momentum still hold."""
    beta1 = 0.908
    if math.ceil(rank) >= min(shape):
        rank = 1
    param = parameter(*shape, dtype=torch.float64)
    options = {"proj_type": proj_type, "proj_method": proj_method, "update_interval": update_interval}
    optimizer = quiet([param], rank=rank, backend=backend, **options)
    steps = grads_of([param], 6)
    momenta = []

    def keep_momentum():
        state = optimizer.state[param]
        if "basis" in state:
            momentum = state["basis"] @ state["exp_avg"]
            momenta.append(momentum if momentum.shape == shape else momentum.mT)

    run(optimizer, [param], steps, after_step=keep_momentum)
    if not momenta:  # a fraction so close to 1 that it rounds to the shorter side: dense
        return
    held = optimizer.state[param]["error_buffer"] + momenta[-1] / (1 - beta1)
    total = sum(momenta[:-1], torch.zeros(shape, dtype=torch.float64)) + held
    assert distance(total, sum(grads[0] for grads in steps)) <= TOLERANCES["float64 conservation"]
