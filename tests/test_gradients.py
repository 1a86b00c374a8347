"""What may happen to a gradient before a step: dtypes, memory layouts, accumulation, scaling, clipping, NaN."""

import pytest
import torch
from torch.nn import Parameter

from builders import (
    PLAIN_BACKENDS,
    assert_same_params,
    assert_same_state,
    copies,
    distance,
    gradients,
    grads_of,
    mixed_params,
    normal,
    parameter,
    quiet,
    run,
    take_step,
)
from ldadam import LDAdamW
from tolerances import TOLERANCES

NUM_STEPS = 6


def test_accumulated_gradients_equal_their_sum():
    params, others = mixed_params(), mixed_params()
    one, other = LDAdamW(params, rank=2), LDAdamW(others, rank=2)
    for first, second in zip(grads_of(params, NUM_STEPS), grads_of(params, NUM_STEPS, seed=9), strict=True):
        one.zero_grad()
        for grads in (first, second):
            torch.autograd.backward([(p * g).sum() for p, g in zip(params, grads, strict=True)])
        one.step()
        take_step(other, others, [a + b for a, b in zip(first, second, strict=True)])
    assert_same_params(params, others)


@pytest.mark.parametrize("through", ["optimizer, to None", "optimizer, to zero", "model, to None", "model, to zero"])
def test_how_gradients_are_cleared_changes_nothing(through):
    """The error buffer lives in the state, so that no `zero_grad` can damage it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 12), torch.nn.Tanh(), torch.nn.Linear(12, 9))
    expected = copies(model.parameters())
    inputs, params = normal(NUM_STEPS, 8, 20), list(model.parameters())
    optimizer, reference = LDAdamW(params, rank=3), LDAdamW(expected, rank=3)
    owner = model if through.startswith("model") else optimizer
    for batch in inputs:
        model(batch).square().mean().backward()
        take_step(reference, expected, [param.grad for param in params])
        optimizer.step()
        owner.zero_grad(set_to_none=through.endswith("None"))
    assert_same_params(params, expected)


def test_clipping_is_seen_and_does_not_reach_the_error_buffer():
    params, others = mixed_params(), mixed_params()
    one, other = LDAdamW(params, rank=2), LDAdamW(others, rank=2)
    for grads in grads_of(params, NUM_STEPS):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(params, max_norm=1.0)
        assert norm > 1
        one.step()
        take_step(other, others, [grad * (1.0 / (norm + 1e-6)) for grad in grads])
    assert_same_state(one, other)


def test_a_grad_scaler_unscales_and_skips_overflowing_steps():
    params, others = [parameter(12, 20)], [parameter(12, 20)]
    optimizer, reference = LDAdamW(params, rank=4), LDAdamW(others, rank=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, grad in enumerate(gradients((12, 20), NUM_STEPS)):
        overflows = step == 2
        optimizer.zero_grad()
        scaler.scale((params[0] * grad).sum() * (float("inf") if overflows else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if not overflows:
            take_step(reference, others, [grad])
    # Scaling by powers of two is exact.
    assert_same_params(params, others)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_is_float32_but_for_float64_parameters_and_the_buffer(dtype):
    params = mixed_params(dtype)
    optimizer = LDAdamW(params, rank=2)
    run(optimizer, params, grads_of(params, 2))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for param, state in optimizer.state.items():
        assert param.dtype == dtype
        assert all(state[key].dtype == expected for key in ("exp_avg", "exp_avg_sq", "basis") if key in state)
        assert state.get("error_buffer", param).dtype == dtype


@pytest.mark.parametrize("error_dtype", ["float64", "float32", "bfloat16"])
def test_the_buffer_is_kept_in_error_dtype(error_dtype):
    params = mixed_params()
    optimizer = LDAdamW(params, rank=2, error_dtype=error_dtype)
    run(optimizer, params, grads_of(params, 2))
    assert optimizer.state[params[0]]["error_buffer"].dtype == getattr(torch, error_dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_parameters_follow_float32_arithmetic(dtype):
    """Each step is the float32 step from the same weights and state, rounded once."""
    param = parameter(12, 20, dtype=dtype)
    shadow = Parameter(param.detach().float())
    optimizer = LDAdamW([param], rank=4, lr=0.01, error_dtype="float32")
    reference = LDAdamW([shadow], rank=4, lr=0.01)
    for grad in gradients((12, 20), NUM_STEPS, dtype=dtype):
        with torch.no_grad():
            shadow.copy_(param)
        take_step(optimizer, [param], [grad])
        take_step(reference, [shadow], [grad.float()])
        assert torch.equal(param.detach(), shadow.detach().to(dtype))


@pytest.mark.parametrize("param_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("grad_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_may_have_another_dtype_than_its_parameter(param_dtype, grad_dtype):
    params, others = mixed_params(param_dtype), mixed_params(param_dtype)
    for param in params:
        param.grad_dtype = None  # torch >= 2.9: any
    optimizer, reference = LDAdamW(params, rank=2), LDAdamW(others, rank=2)
    for grads in grads_of([param.bfloat16() for param in params], 3):
        take_step(optimizer, params, [grad.to(grad_dtype) for grad in grads])
        take_step(reference, others, [grad.to(param_dtype) for grad in grads])
    assert_same_state(optimizer, reference)
    assert_same_params(params, others)


MEMORY_ORDERS = {
    "channels_last convolution": ((8, 6, 3, 3), lambda t: t.to(memory_format=torch.channels_last)),
    "transposed matrix": ((12, 20), lambda t: t.mT.contiguous().mT),
    "matrix with gaps": ((12, 20), lambda t: torch.zeros(24, 40)[::2, ::2].copy_(t)),
    "transposed stack": ((3, 10, 8), lambda t: t.transpose(0, 2).contiguous().transpose(0, 2)),
}


@pytest.mark.parametrize("case", MEMORY_ORDERS)
@pytest.mark.parametrize("grad_too", [False, True], ids=["contiguous gradient", "gradient alike"])
def test_memory_order_changes_nothing_for(case, grad_too):
    shape, reorder = MEMORY_ORDERS[case]
    plain = parameter(*shape)
    param = Parameter(reorder(plain.detach().clone()))
    start = plain.detach().clone()
    assert not param.is_contiguous()
    strides = param.stride()
    one, other = LDAdamW([param], lr=0.01, rank=3), LDAdamW([plain], lr=0.01, rank=3)
    for grad in gradients(shape, NUM_STEPS):
        param.grad = reorder(grad.clone()) if grad_too else grad.clone()
        one.step()
        take_step(other, [plain], [grad])
    assert param.stride() == strides
    assert all(value.is_contiguous() for value in one.state[param].values())
    assert distance(param - start, plain - start) <= TOLERANCES["float32 memory order"]
    assert (
        distance(one.state[param]["error_buffer"], other.state[plain]["error_buffer"])
        <= (TOLERANCES["float32 memory order"])
    )


@pytest.mark.parametrize("shape", [(0,), (0, 20), (20, 0), (0, 12, 20), (4, 0, 20), (8, 0, 3, 3)], ids=str)
def test_an_empty_tensor_is_stepped_without_complaint(shape):
    params = [Parameter(torch.zeros(shape)), parameter(12, 20)]
    optimizer = quiet(params, rank=4)
    run(optimizer, params, grads_of(params, 3))
    assert optimizer.state[params[0]]["step"] == 3


def test_all_zero_gradients_move_nothing_and_give_no_nan():
    params = mixed_params()
    before = copies(params)
    optimizer = LDAdamW(params, rank=2)
    run(optimizer, params, [[torch.zeros_like(param) for param in params]] * 3)
    assert_same_params(params, before)
    run(optimizer, params, grads_of(params, 3))
    assert all(
        param.isfinite().all() and not torch.equal(param, old) for param, old in zip(params, before, strict=True)
    )


def spoil(grads: list[torch.Tensor], *, which: int, value: float) -> list[torch.Tensor]:
    """The same gradients with one bad entry in one of them."""
    grads = [grad.clone() for grad in grads]
    grads[which].view(-1)[3] = value
    return grads


BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)


@BAD
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("at", [0, 3], ids=["first step", "later step"])
def test_with_skip_nonfinite_a_bad_gradient_is_as_if_it_had_not_happened_to_that_parameter(bad, which, at, backend):
    params, others = mixed_params(), mixed_params()
    steps = grads_of(params, NUM_STEPS)
    options = {"rank": 2, "skip_nonfinite": True, "backend": backend}
    optimizer, reference = (LDAdamW(some, **options) for some in (params, others))
    for step, grads in enumerate(steps):
        if step == at:
            before = params[which].detach().clone(), {k: v.clone() for k, v in optimizer.state[params[which]].items()}
            take_step(optimizer, params, spoil(grads, which=which, value=bad))
            take_step(reference, others, [None if i == which else grad for i, grad in enumerate(grads)])
            assert torch.equal(params[which], before[0])
            state = optimizer.state[params[which]]
            assert all(torch.equal(state[key], old) for key, old in before[1].items() if key != "num_skipped")
            assert state["num_skipped"] == 1 and state["step"] == at
        else:
            take_step(optimizer, params, grads)
            take_step(reference, others, grads)
    assert_same_params(params, others)
    assert [optimizer.state[param]["num_skipped"].item() for param in params] == [float(i == which) for i in range(5)]


@BAD
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("at", [0, 3], ids=["first step", "later step"])
def test_without_it_nan_spreads_within_the_parameter_as_in_torch_and_nothing_raises(bad, which, at, backend):
    params = mixed_params()
    optimizer = LDAdamW(params, rank=2, backend=backend)
    for step, grads in enumerate(grads_of(params, NUM_STEPS)):
        take_step(optimizer, params, spoil(grads, which=which, value=bad) if step == at else grads)
    assert not params[which].isfinite().all()
    assert all(param.isfinite().all() for i, param in enumerate(params) if i != which)


def test_skip_nonfinite_can_be_switched_on_between_steps():
    params = mixed_params()
    steps = grads_of(params, 2)
    optimizer = LDAdamW(params, rank=2)
    take_step(optimizer, params, steps[0])
    optimizer.param_groups[0]["skip_nonfinite"] = True
    take_step(optimizer, params, spoil(steps[1], which=0, value=float("nan")))
    assert optimizer.state[params[0]]["num_skipped"] == 1
    assert optimizer.state[params[0]]["step"] == 1 and optimizer.state[params[1]]["step"] == 2


def test_skipping_nothing_changes_nothing():
    params, others = mixed_params(), mixed_params()
    run(LDAdamW(params, rank=2, skip_nonfinite=True), params, grads_of(params, NUM_STEPS))
    run(LDAdamW(others, rank=2), others, grads_of(others, NUM_STEPS))
    assert_same_params(params, others)
