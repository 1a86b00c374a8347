"""Stepping in backward gives what stepping after it gives, with one gradient alive at a time."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from builders import PLAIN_BACKENDS, assert_same_params, assert_same_state, distance, normal, parameter
from in_backward_runs import Everything, backward, build, train
from ldadam import LDAdamW, error_buffer, step_in_backward
from tolerances import TOLERANCES

NUM_STEPS = 6
SCHEDULERS = {
    "no schedule": lambda optimizer: None,
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 3)),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=NUM_STEPS + 1),
}
OPTIONS = [
    {},
    {"maximize": True},
    {"update_interval": 3},
    {"error_feedback": False},
    {"error_dtype": "bfloat16"},
    {"proj_method": "svd", "proj_type": "right"},
    {"skip_nonfinite": True},
    {"capturable": True},
    {"scaled_residual": True},
    {"rank": None},
]


@pytest.fixture(autouse=True)
def strict_schedulers(recwarn):
    """A scheduler that finds no call of `step` between two of its own warns."""
    yield
    assert not [str(one.message) for one in recwarn if "lr_scheduler" in str(one.message)]


def assert_close(model: Everything, expected: Everything) -> None:
    for param, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert distance(param, other) <= TOLERANCES["float64 trajectory"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_it_equals_the_ordinary_path_to_the_bit(schedule, backend, dtype):
    runs = [build(dtype, backend=backend) for _ in range(2)]
    for (model, optimizer), in_backward in zip(runs, (False, True), strict=True):
        scheduler = SCHEDULERS[schedule](optimizer)
        if in_backward:
            step_in_backward(optimizer)
        train(model, optimizer, range(NUM_STEPS), after_step=scheduler.step if scheduler else lambda: None)
    (expected, ordinary), (model, optimizer) = runs
    assert_same_params(model.parameters(), expected.parameters())
    assert_same_state(optimizer, ordinary)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_gives_the_same_bits(options):
    (expected, ordinary), (model, optimizer) = build(**options), build(**options)
    train(expected, ordinary, range(NUM_STEPS))
    with step_in_backward(optimizer):
        train(model, optimizer, range(NUM_STEPS))
    assert_same_params(model.parameters(), expected.parameters())
    assert_same_state(optimizer, ordinary)


@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
@pytest.mark.parametrize("options", [{**some, "error_dtype": None} for some in OPTIONS if "error_dtype" not in some])
def test_accumulation_equals_ordinary_accumulation(options, backend):
    (expected, ordinary), (model, optimizer) = (build(torch.float64, backend=backend, **options) for _ in range(2))
    train(expected, ordinary, range(NUM_STEPS), num_micro=3)
    step_in_backward(optimizer, accumulation_steps=3)
    train(model, optimizer, range(NUM_STEPS), num_micro=3)
    assert_close(model, expected)
    assert optimizer.state[model.experts]["step"] == NUM_STEPS


def test_micro_batches_are_summed_in_the_error_buffer_and_freed():
    model, optimizer = build()
    step_in_backward(optimizer, accumulation_steps=2)
    before = copy.deepcopy(model.state_dict())
    backward(model, 0)
    assert {name for name, param in model.named_parameters() if param.grad is not None} == {
        "wide.bias", "tall.bias", "conv.bias"
    }  # fmt: skip
    assert optimizer.state[model.experts]["error_buffer"].norm() > 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    backward(model, 1)
    assert all(param.grad is None for param in model.parameters())
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_a_sum_in_a_smaller_dtype_is_rounded_once():
    state = {"error_buffer": normal(12, 20).bfloat16()}
    grad = normal(12, 20, seed=1)
    expected = (state["error_buffer"].float() - grad).bfloat16()
    error_buffer.add_(state, grad, sign=-1)
    assert torch.equal(state["error_buffer"], expected)


@pytest.mark.parametrize("used", [(False, True, True), (True, True, False), (False, False, False)], ids=str)
def test_parameters_without_a_gradient_in_some_micro_batches(used):
    (expected, ordinary), (model, optimizer) = build(torch.float64), build(torch.float64)
    train(expected, ordinary, range(NUM_STEPS), num_micro=3, uses_experts=lambda micro: used[micro])
    step_in_backward(optimizer, accumulation_steps=3)
    train(model, optimizer, range(NUM_STEPS), num_micro=3, uses_experts=lambda micro: used[micro])
    assert_close(model, expected)
    assert (model.experts in optimizer.state) == any(used)


def test_step_takes_an_accumulation_that_ends_early():
    """As trainers do with the last batches of an epoch."""
    (expected, ordinary), (model, optimizer) = build(torch.float64), build(torch.float64)
    step_in_backward(optimizer, accumulation_steps=4)
    for num_micro in (4, 3, 1, 4):
        train(expected, ordinary, range(2), num_micro=num_micro)
        train(model, optimizer, range(2), num_micro=num_micro)
    assert_close(model, expected)


def test_a_micro_batch_that_is_not_finite_skips_the_whole_step():
    (expected, ordinary), (model, optimizer) = build(skip_nonfinite=True), build(skip_nonfinite=True)
    step_in_backward(optimizer, accumulation_steps=2)
    for one, its_optimizer in ((expected, ordinary), (model, optimizer)):
        train(one, its_optimizer, range(2), num_micro=2)
        (one(normal(6, 20)) * torch.inf).backward()
        backward(one, 0)
        its_optimizer.step()
        its_optimizer.zero_grad()
        train(one, its_optimizer, range(2, 4), num_micro=2)
    assert all(state["num_skipped"] == 1 and state["step"] == 4 for state in optimizer.state.values())
    assert_same_params(model.parameters(), expected.parameters())


def test_a_sum_counts_as_a_step_though_its_last_gradient_is_zero_and_so_is_the_learning_rate():
    """The first step of a warm-up must not be taken for a request for state."""
    param = parameter(12, 20)
    optimizer = LDAdamW([param], lr=0.0, rank=4)
    step_in_backward(optimizer, accumulation_steps=2)
    (param * normal(12, 20)).sum().backward()
    (param * 0).sum().backward()
    assert optimizer.state[param]["step"] == 1 and optimizer.state[param]["exp_avg"].norm() > 0


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one():
    expected, whole = build()
    step_in_backward(whole, accumulation_steps=2)
    train(expected, whole, range(NUM_STEPS), num_micro=2)
    (half, first), (model, second) = build(), build()
    step_in_backward(first, accumulation_steps=2)
    step_in_backward(second, accumulation_steps=2)
    train(half, first, range(3), num_micro=2)
    model.load_state_dict(half.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(model, second, range(3, NUM_STEPS), num_micro=2)
    assert_same_params(model.parameters(), expected.parameters())
    assert_same_state(second, whole)


def test_loading_forgets_micro_batches():
    (expected, ordinary), (model, optimizer) = build(), build()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    step_in_backward(optimizer, accumulation_steps=2)
    backward(model, 99)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    optimizer.zero_grad()
    step_in_backward(ordinary, accumulation_steps=2)
    train(expected, ordinary, range(3), num_micro=2)
    train(model, optimizer, range(3), num_micro=2)
    assert_same_params(model.parameters(), expected.parameters())


def test_remove_restores_the_ordinary_path():
    (expected, ordinary), (model, optimizer) = build(), build()
    train(expected, ordinary, range(NUM_STEPS))
    handle = step_in_backward(optimizer)
    train(model, optimizer, range(3))
    handle.remove()
    handle.remove()
    before = copy.deepcopy(model.state_dict())
    backward(model, 300)
    assert all(param.grad is not None for param in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    optimizer.step()
    optimizer.zero_grad()
    train(model, optimizer, range(4, NUM_STEPS))
    assert_same_params(model.parameters(), expected.parameters())


def test_micro_batches_before_remove_enter_the_next_step():
    (expected, ordinary), (model, optimizer) = build(torch.float64), build(torch.float64)
    train(expected, ordinary, [0], num_micro=3)
    with step_in_backward(optimizer, accumulation_steps=3):
        backward(model, 0, num_micro=3)
    backward(model, 1, num_micro=3)
    backward(model, 2, num_micro=3)
    optimizer.step()
    assert_close(model, expected)


def test_a_closure_runs_and_its_loss_comes_back():
    (expected, ordinary), (model, optimizer) = build(), build()
    step_in_backward(optimizer)

    def run_closure(model, optimizer, seed):
        def closure():
            optimizer.zero_grad()
            loss = model(normal(6, 20, seed=seed))
            loss.backward()
            return loss

        return optimizer.step(closure)

    for seed in range(3):
        assert torch.equal(run_closure(model, optimizer, seed), run_closure(expected, ordinary, seed))
    assert_same_params(model.parameters(), expected.parameters())


def test_a_tied_parameter_is_stepped_once():
    model, optimizer = build()
    step_in_backward(optimizer)
    backward(model, 0)
    assert optimizer.state[model.tokens.weight]["step"] == 1


def test_clip_norm_clips_each_parameter_by_itself():
    (expected, ordinary), (model, optimizer) = build(), build()
    step_in_backward(optimizer, clip_norm=0.5)
    train(model, optimizer, range(3))
    for step in range(3):
        backward(expected, 100 * step)
        norms = [torch.nn.utils.clip_grad_norm_(param, 0.5) for param in expected.parameters()]
        assert max(norms) > 0.5 > min(norms)
        ordinary.step()
        ordinary.zero_grad()
    assert_same_params(model.parameters(), expected.parameters())


def test_step_moves_what_backward_has_not():
    """A gradient set by hand, a parameter unfrozen later, and a group added later."""
    params, others = [[parameter(12, 20, seed=i) for i in range(3)] for _ in range(2)]
    optimizers = [LDAdamW(some[:2], rank=4) for some in (params, others)]
    params[1].requires_grad_(False)
    step_in_backward(optimizers[0])
    params[1].requires_grad_(True)
    for optimizer, (first, *rest) in zip(optimizers, (params, others), strict=True):
        optimizer.add_param_group({"params": rest[1:]})
        first.grad = normal(12, 20)
        sum((param * normal(12, 20, seed=i)).sum() for i, param in enumerate(rest)).backward()
        optimizer.step()
    assert_same_params(params, others)
