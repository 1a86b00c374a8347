"""The error buffer behind its interface: whatever its storage, a step is the page's with E as it can be stored."""

import pytest
import torch

from builders import PLAIN_BACKENDS, copies, distance, gradients, grads_of, mixed_params, normal, parameter, quiet, run
from ldadam import LDAdamW, error_buffer
from tolerances import TOLERANCES

NAMES = ["float64", "float32", "bfloat16", "int8", "int4"]
SHAPES = [(12, 20), (30, 9), (5, 131), (3, 10, 7), (8, 3, 3, 3)]


def state_of(error: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    state = error_buffer.create(error, name)
    error_buffer.write_(state, error)
    return state


def stored(error: torch.Tensor, name: str) -> torch.Tensor:
    """E as it comes back from storage."""
    return error_buffer.read(state_of(error, name), error.shape, error.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_was_written_and_is_stored_as_asked(name, shape):
    error = normal(*shape)
    state = state_of(error, name)
    assert error_buffer.stored_name(state) == name
    once = stored(error, name)
    assert once.shape == shape and distance(once, error) <= TOLERANCES[f"stored error, {name}"]
    torch.testing.assert_close(stored(once, name), once, rtol=0, atol=0)
    assert error_buffer.planned_bytes(error, name) == {key: value.nbytes for key, value in state.items()}


@pytest.mark.parametrize(("name", "bits"), [("int8", 8.25), ("int4", 4.25)])
def test_a_quantised_buffer_takes_a_quarter_of_a_bit_beside_its_codes(name, bits):
    assert sum(error_buffer.planned_bytes(parameter(128, 256), name).values()) * 8 == bits * 128 * 256


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
def test_a_step_is_that_of_a_float_buffer_with_the_same_content(name, backend):
    """From one state: the same weights and moments, and E rounded to what the storage holds."""
    params = mixed_params()
    optimizer = quiet(params, rank=2, error_dtype=name, backend=backend)
    steps = grads_of(params, 4)
    run(optimizer, params, steps[:3])
    others = copies(params)
    reference = quiet(others, rank=2)
    reference.load_state_dict(optimizer.state_dict())
    for group in reference.param_groups:
        group |= {"error_dtype": "float32", "backend": "eager"}
    run(optimizer, params, steps[3:])
    run(reference, others, steps[3:])
    for param, other in zip(params, others, strict=True):
        state, expected = optimizer.state[param], reference.state[other]
        assert distance(param, other) <= TOLERANCES["float32 step"]
        assert distance(state["exp_avg"], expected["exp_avg"]) <= TOLERANCES["float32 step"]
        if "basis" in state:
            error = error_buffer.read(state, param.shape, torch.float32)
            torch.testing.assert_close(error, stored(expected["error_buffer"], name), rtol=0, atol=0)


@pytest.mark.parametrize("before", NAMES)
@pytest.mark.parametrize("after", NAMES)
def test_a_buffer_is_stored_anew_when_error_dtype_changes(before, after):
    params = mixed_params()
    optimizer = quiet(params, rank=2, error_dtype=before)
    run(optimizer, params, grads_of(params, 2))
    state = dict(optimizer.state[params[0]])
    error = error_buffer.read(state, params[0].shape, torch.float32)
    error_buffer.follow_(state, params[0], error_feedback=True, error_dtype=after)
    assert error_buffer.stored_name(state) == after
    kept = error_buffer.read(state, params[0].shape, torch.float32)
    assert distance(kept, error) <= TOLERANCES[f"stored error, {after}"]
    optimizer.param_groups[0]["error_dtype"] = after
    run(optimizer, params, grads_of(params, 1))
    assert {error_buffer.stored_name(optimizer.state[param]) for param in params[:3]} == {after}


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_feedback_in_codes_keeps_nearly_all_of_the_gradients(name):
    """Sum of gradients = sum of applied momenta + what is still held, up to the rounding of E at each step."""
    beta1, shape, num_steps = 0.908, (24, 40), 30
    grads = gradients(shape, num_steps)
    held = {}
    for error_feedback in (True, False):
        param = parameter(*shape)
        optimizer = LDAdamW([param], rank=4, error_dtype=name, error_feedback=error_feedback)
        applied, momentum = torch.zeros(shape), torch.zeros(shape)
        for grad in grads:
            applied = applied + momentum
            run(optimizer, [param], [[grad]])
            momentum = optimizer.state[param]["basis"] @ optimizer.state[param]["exp_avg"]
        error = error_buffer.read(optimizer.state[param], param.shape, torch.float32)
        held[error_feedback] = distance(applied + momentum / (1 - beta1) + error, grads.sum(0))
    assert held[True] < held[False] / 3
