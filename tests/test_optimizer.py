"""The contract of `LDAdamW.step` and of its groups, one test a sentence."""

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from builders import (
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


def trajectory(*, lr=0.01, num_steps: int = NUM_STEPS, **options) -> list[Parameter]:
    """Mixed parameters after some steps."""
    params = mixed_params()
    run(LDAdamW(params, lr=lr, rank=2, **options), params, grads_of(params, num_steps))
    return params


def test_a_closure_runs_with_grad_enabled_before_gradients_are_read():
    model = torch.nn.Linear(20, 12)
    inputs = normal(5, 20)
    optimizer = LDAdamW(model.parameters(), rank=4)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.5
        return loss

    before = model.weight.detach().clone()
    loss = optimizer.step(closure)
    assert loss.item() > 0
    # Adam's first step has entries of about lr, so that the rate set by the closure shows.
    assert (model.weight - before).abs().max() > 0.1


def test_a_step_without_closure_returns_none():
    param = parameter(12, 20)
    param.grad = normal(12, 20)
    assert LDAdamW([param], rank=4).step() is None


def test_a_step_leaves_grad_mode_and_gradients_alone():
    param = parameter(12, 20)
    optimizer = LDAdamW([param], rank=4)
    for grad in gradients((12, 20), 3):
        param.grad = grad.clone()
        optimizer.step()
        assert torch.equal(param.grad, grad)
    assert torch.is_grad_enabled() and param.requires_grad and param.grad_fn is None


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_tensor_learning_rate_equals_a_number(shape):
    assert_same_params(trajectory(lr=torch.full(shape, 0.25)), trajectory(lr=0.25))


def test_a_learning_rate_of_zero_moves_no_weight_but_all_moments():
    param = parameter(12, 20)
    optimizer = LDAdamW([param], lr=0.0, rank=4, weight_decay=0.1)
    before = param.detach().clone()
    take_step(optimizer, [param], [normal(12, 20)])
    assert torch.equal(param, before)
    state = optimizer.state[param]
    assert state["step"] == 1 and state["exp_avg"].norm() > 0 and state["error_buffer"].norm() > 0


def test_maximize_descends_the_negative_gradient():
    params, others = mixed_params(), mixed_params()
    steps = grads_of(params, NUM_STEPS)
    run(LDAdamW(params, rank=2, maximize=True), params, steps)
    run(LDAdamW(others, rank=2), others, [[-grad for grad in grads] for grads in steps])
    assert_same_params(params, others)


def test_weight_decay_is_decoupled_and_multiplied_by_the_learning_rate():
    params = mixed_params()
    before = copies(params)
    optimizer = LDAdamW(params, lr=0.1, weight_decay=0.5, rank=2, eps=1.0)
    run(optimizer, params, [[torch.zeros_like(param) for param in params]])
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), 0.95 * old.detach())


def test_dense_parameters_follow_torchs_adamw():
    param, other = parameter(7, dtype=torch.float64), parameter(7, dtype=torch.float64)
    grads = [[grad] for grad in gradients((7,), 30, dtype=torch.float64)]
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    run(LDAdamW([param], **options), [param], grads)
    run(torch.optim.AdamW([other], **options), [other], grads)
    assert distance(param, other) <= TOLERANCES["float64 formula"]


def test_rank_none_is_torchs_adamw_for_matrices_too():
    params = mixed_params(torch.float64)
    others = copies(params)
    steps = grads_of(params, 30)
    run(LDAdamW(params, lr=0.01, rank=None), params, steps)
    run(torch.optim.AdamW(others, lr=0.01, betas=(0.908, 0.99), weight_decay=0.0), others, steps)
    assert all(distance(p, q) <= TOLERANCES["float64 formula"] for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("option", [{"betas": (0.5, 0.9)}, {"rho": 0.1}, {"proj_type": "right"}, {"rank": 4}], ids=str)
def test_each_group_honours_its_own(option):
    """One optimizer with two groups equals two optimizers."""
    params = [parameter(12, 20), parameter(12, 20)]
    others = copies(params)
    steps = grads_of(params, NUM_STEPS)
    run(LDAdamW([{"params": params[:1], **option}, {"params": params[1:]}], rank=2), params, steps)
    run(LDAdamW(others[:1], **{"rank": 2, **option}), others[:1], [grads[:1] for grads in steps])
    run(LDAdamW(others[1:], rank=2), others[1:], [grads[1:] for grads in steps])
    assert_same_params(params, others)


def test_a_parameter_does_not_depend_on_its_neighbours():
    params = mixed_params()
    steps = grads_of(params, NUM_STEPS)
    alone = copies(params)
    run(LDAdamW(params, rank=2), params, steps)
    for i, param in enumerate(alone):
        run(LDAdamW([param], rank=2), [param], [[grads[i]] for grads in steps])
    assert all(distance(p, q) <= TOLERANCES["float32 step"] for p, q in zip(params, alone, strict=True))


def test_a_group_added_later_trains_with_its_own_step_count():
    first, later = parameter(12, 20), parameter(20, 12)
    optimizer = LDAdamW([first], rank=4)
    run(optimizer, [first], grads_of([first], 3))
    optimizer.add_param_group({"params": [later], "lr": 0.5})
    run(optimizer, [first, later], grads_of([first, later], 2))
    assert optimizer.state[first]["step"] == 5
    assert optimizer.state[later]["step"] == 2
    assert optimizer.param_groups[1]["rank"] == 4


@pytest.mark.parametrize("bad", [{"rho": 2.0}, {"rnak": 2}])
def test_a_group_that_is_refused_leaves_no_trace(bad):
    optimizer = LDAdamW([parameter(12, 20)], rank=4)
    with pytest.raises(ValueError, match="param group 1"):
        optimizer.add_param_group({"params": [parameter(12, 20)], **bad})
    assert len(optimizer.param_groups) == 1


def test_a_named_group_that_is_refused_in_part_leaves_no_trace():
    bias = parameter(12)
    optimizer = LDAdamW([("bias", bias)], rank=4)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [("weight", parameter(12, 20)), ("bias", bias)]})
    assert len(optimizer.param_groups) == 1


def test_a_set_of_parameters_is_refused_as_in_torch():
    with pytest.raises(TypeError, match="ordered"):
        LDAdamW([{"params": {parameter(12, 20), parameter(12, 20)}}], rank=4)


@pytest.mark.parametrize("kind", ["list", "generator", "named", "groups", "one tensor in a group"])
def test_parameters_may_come_as(kind):
    model = torch.nn.Linear(20, 12)
    params = {
        "list": list(model.parameters()),
        "generator": model.parameters(),
        "named": model.named_parameters(),
        "groups": [{"params": model.parameters()}],
        "one tensor in a group": [{"params": model.weight}, {"params": model.bias}],
    }[kind]
    optimizer = LDAdamW(params, rank=4)
    model(normal(5, 20)).square().mean().backward()
    optimizer.step()
    assert "basis" in optimizer.state[model.weight]
    assert "basis" not in optimizer.state[model.bias]


def test_a_late_first_gradient_starts_that_parameter_at_its_first_step():
    params, others = [parameter(12, 20), parameter(20, 12, seed=1)], [parameter(20, 12, seed=1)]
    steps = grads_of(params, NUM_STEPS)
    optimizer = LDAdamW(params, rank=4)
    run(optimizer, params, [[grads[0], None] for grads in steps[:3]])
    assert params[1] not in optimizer.state
    run(optimizer, params, steps[3:])
    run(LDAdamW(others, rank=4), others, [grads[1:] for grads in steps[3:]])
    assert_same_params(params[1:], others)


def test_a_parameter_frozen_for_a_while_goes_on_where_it_stopped():
    params, others = [parameter(12, 20)], [parameter(12, 20)]
    steps = grads_of(params, NUM_STEPS)
    optimizer = LDAdamW(params, rank=4)
    run(optimizer, params, steps[:3])
    params[0].requires_grad_(False)
    run(optimizer, params, [[None]] * 2)
    params[0].requires_grad_(True)
    run(optimizer, params, steps[3:])
    run(LDAdamW(others, rank=4), others, steps)
    assert_same_params(params, others)


def test_a_sparse_gradient_is_refused_by_name():
    embedding = torch.nn.Embedding(50, 16, sparse=True)
    optimizer = LDAdamW([("tokens", embedding.weight)], rank=4)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"dense real gradients; that of tokens, of shape \(50, 16\), is sparse"):
        optimizer.step()


def test_a_complex_gradient_is_refused_by_name():
    param = Parameter(torch.zeros(12, 20, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"parameter 0 of param group 0, of shape \(12, 20\), is complex"):
        LDAdamW([param], rank=4).step()


SCHEDULERS = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 3)),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=NUM_STEPS + 1),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, T_max=NUM_STEPS),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_a_scheduler_of_torch_drives_the_learning_rate(name, as_tensor):
    """The run equals one whose learning rates (and betas: OneCycleLR cycles them) were set by hand."""
    params, others = mixed_params(), mixed_params()
    steps = grads_of(params, NUM_STEPS)
    lr = torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1
    optimizer = LDAdamW(params, lr=lr, rank=2)
    scheduler = SCHEDULERS[name](optimizer)
    by_hand = LDAdamW(others, rank=2)
    seen = []
    for grads in steps:
        seen.append((float(optimizer.param_groups[0]["lr"]), optimizer.param_groups[0]["betas"]))
        by_hand.param_groups[0].update(lr=seen[-1][0], betas=seen[-1][1])
        take_step(optimizer, params, grads)
        take_step(by_hand, others, grads)
        scheduler.step()
    assert len({lr for lr, _ in seen}) > 2
    assert (len({betas for _, betas in seen}) > 2) == (name == "OneCycleLR")
    assert all(distance(p, q) <= TOLERANCES["float32 step"] for p, q in zip(params, others, strict=True))


def test_error_feedback_can_be_switched_off_and_on_between_steps():
    params = mixed_params()
    steps = grads_of(params, 3)
    optimizer = LDAdamW(params, rank=2)
    take_step(optimizer, params, steps[0])
    optimizer.param_groups[0]["error_feedback"] = False
    take_step(optimizer, params, steps[1])
    assert not any("error_buffer" in state for state in optimizer.state.values())
    optimizer.param_groups[0]["error_feedback"] = True
    take_step(optimizer, params, steps[2])
    assert optimizer.state[params[0]]["error_buffer"].norm() > 0


def test_a_rank_changed_after_the_first_step_is_refused():
    params = [parameter(12, 20)]
    optimizer = LDAdamW(params, rank=4)
    run(optimizer, params, grads_of(params, 1))
    for rank in (5, None):
        optimizer.param_groups[0]["rank"] = rank
        with pytest.raises(ValueError, match=r"the moments of parameter 0 .* have shape \(4, 20\), .* set rank"):
            optimizer.step()


def test_a_run_does_not_depend_on_torchs_generator():
    one, other = parameter(300, 280), parameter(300, 280)
    for seed, param in ((1, one), (2, other)):
        torch.manual_seed(seed)
        run(LDAdamW([param], rank=8), [param], grads_of([param], 2))
    assert_same_params([one], [other])


def test_two_optimizers_of_the_same_run_have_the_same_bits():
    params, others = mixed_params(), mixed_params()
    one, other = quiet(params, rank=2), quiet(others, rank=2)
    run(one, params, grads_of(params, NUM_STEPS))
    run(other, others, grads_of(others, NUM_STEPS))
    assert_same_state(one, other)
