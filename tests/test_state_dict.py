"""Saving, loading, copying and priming: state comes back as it was, or the optimizer stays as it was."""

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from builders import (
    assert_same_params,
    assert_same_state,
    copies,
    grads_of,
    mixed_params,
    normal,
    parameter,
    run,
    take_step,
)
from ldadam import LDAdamW

OPTIONS = {"rank": 2, "lr": 0.01, "weight_decay": 0.1}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def trained(dtype=torch.float32, **options) -> tuple[list[torch.nn.Parameter], LDAdamW]:
    params = mixed_params(dtype)
    optimizer = LDAdamW(params, **{**OPTIONS, **options})
    run(optimizer, params, grads_of(params, 3))
    return params, optimizer


def saved_and_loaded(state_dict: dict) -> dict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"error_dtype": torch.bfloat16},
        {"error_dtype": "float32"},
        {"error_dtype": "int8"},
        {"error_dtype": "int4"},
        {"skip_nonfinite": True},
        {"lr": torch.ones(())},
    ],
    ids=str,
)
def test_a_weights_only_round_trip_keeps_values_and_dtypes_and_the_run_goes_on(dtype, options):
    params, optimizer = trained(dtype, **options)
    others = copies(params)
    other = LDAdamW(others, rank=4, lr=0.5)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert_same_state(other, optimizer)
    for old, new in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert {key: value.dtype for key, value in old.items()} == {key: value.dtype for key, value in new.items()}
    more = grads_of(params, 3, seed=5)
    run(optimizer, params, more)
    run(other, others, more)
    assert_same_params(others, params)


def test_loaded_state_shares_no_memory_with_what_it_was_loaded_from():
    params, optimizer = trained()
    state_dict = optimizer.state_dict()
    other = LDAdamW(copies(params), **OPTIONS)
    other.load_state_dict(state_dict)
    for old, new in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(old[key].data_ptr() != new[key].data_ptr() for key in old)


def test_the_hyperparameters_of_the_checkpoint_count():
    """As in torch: groups are loaded whole, the rank among them, so that they fit the state."""
    params, optimizer = trained()
    other = LDAdamW(copies(params), rank=4, lr=0.5, betas=(0.5, 0.5))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["rank"] == 2 and other.param_groups[0]["lr"] == 0.01
    assert other.param_groups[0]["betas"] == (0.908, 0.99)


def test_groups_of_a_version_that_lacked_an_option_get_its_default():
    params, optimizer = trained()
    state_dict = optimizer.state_dict()
    del state_dict["param_groups"][0]["skip_nonfinite"]
    other = LDAdamW(copies(params), **OPTIONS)
    other.load_state_dict(state_dict)
    assert other.param_groups[0]["skip_nonfinite"] is False


def misfit(kind: str) -> tuple[dict, str]:
    """A state dict that does not fit, and what its message says."""
    params, optimizer = trained()
    state_dict = copy.deepcopy(optimizer.state_dict())
    if kind == "another rank in the group than in the state":
        state_dict["param_groups"][0]["rank"] = 3
        return state_dict, r"'exp_avg' of parameter 0 of param group 0 has shape \(2, 20\), expected \(3, 20\)"
    if kind == "another number of groups":
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        return LDAdamW(groups, **OPTIONS).state_dict(), r"param groups of \[2, 3\] parameters, the optimizer of \[5\]"
    if kind == "another number of parameters":
        return LDAdamW(params[:4], **OPTIONS).state_dict(), r"param groups of \[4\] parameters, the optimizer of \[5\]"
    if kind == "another order of parameters":
        state_dict["param_groups"][0]["params"] = [1, 0, 2, 3, 4]
        return state_dict, r"'exp_avg' of parameter 0 .* has shape \(2, 30\), expected \(2, 20\)"
    if kind == "the last parameter only":
        state_dict["state"][4]["exp_avg_sq"] = torch.zeros(9)
        return state_dict, r"'exp_avg_sq' of parameter 4 .* has shape \(9,\), expected \(7,\)"
    if kind == "state of torch's AdamW":
        other = torch.optim.AdamW(params)
        other.step()
        state_dict["state"] = other.state_dict()["state"]
        return state_dict, r"of parameter 0 .* expected \(2, 20\)"
    if kind == "no basis":
        del state_dict["state"][0]["basis"]
        return state_dict, r"the loaded state of parameter 0 of param group 0 has no 'basis', only \['error_buffer', "
    if kind == "no scales of its codes":
        state_dict = trained(error_dtype="int4")[1].state_dict()
        del state_dict["state"][0]["error_scale"]
        return state_dict, r"the loaded state of parameter 0 of param group 0 has no 'error_scale', only \['basis', "
    if kind == "codes of another shape":
        state_dict = trained(error_dtype="int4")[1].state_dict()
        state_dict["state"][1]["error_buffer"] = torch.zeros(30, 9, dtype=torch.uint8)
        return state_dict, r"'error_buffer' of parameter 1 .* has shape \(30, 9\), expected \(30, 5\)"
    if kind == "a hyperparameter out of range":
        state_dict["param_groups"][0]["rho"] = 2.0
        return state_dict, r"rho must be .*; param group 0 has rho=2\.0"
    assert kind == "state of an unknown parameter"
    state_dict["state"][17] = state_dict["state"][0]
    return state_dict, r"parameters \[17\], which are in none of its groups"


MISFITS = [
    *("another rank in the group than in the state", "another number of groups", "another number of parameters"),
    *("another order of parameters", "the last parameter only", "state of torch's AdamW", "no basis"),
    *("no scales of its codes", "codes of another shape"),
    *("a hyperparameter out of range", "state of an unknown parameter"),
]


@pytest.mark.parametrize("kind", MISFITS)
def test_a_state_dict_that_does_not_fit_is_refused_and_nothing_changes(kind):
    state_dict, message = misfit(kind)
    params, optimizer = trained()
    optimizer.param_groups[0]["lr"] = 0.123
    before = copy.deepcopy(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state_dict)
    assert_same_state(optimizer, before)
    take_step(optimizer, params, grads_of(params, 1)[0])
    optimizer.load_state_dict(before.state_dict())
    assert_same_state(optimizer, before)


def test_load_hooks_see_the_state_before_and_the_loaded_optimizer_after():
    params, optimizer = trained()
    other = LDAdamW(copies(params), **OPTIONS)
    seen = []

    def double_momenta(_, state_dict):
        state = {index: {**values, "exp_avg": 2 * values["exp_avg"]} for index, values in state_dict["state"].items()}
        return {**state_dict, "state": state}

    other.register_load_state_dict_pre_hook(double_momenta)
    other.register_load_state_dict_post_hook(lambda opt: seen.append(len(opt.state)))
    other.load_state_dict(optimizer.state_dict())
    assert seen == [5]
    for old, new in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert torch.equal(new["exp_avg"], 2 * old["exp_avg"])
    other.load_state_dict(optimizer.state_dict())
    assert seen == [5, 5], "our own hooks should leave with the load that needed them"


def test_loading_by_keyword_works():
    params, optimizer = trained()
    other = LDAdamW(copies(params), **OPTIONS)
    other.load_state_dict(state_dict=optimizer.state_dict())
    assert_same_state(other, optimizer)


def test_state_is_tensors_that_own_their_memory():
    _, optimizer = trained()
    for state in optimizer.state.values():
        for value in state.values():
            assert value.untyped_storage().nbytes() == value.nbytes and value.is_contiguous()


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_with_its_parameters_goes_on_by_itself(clone):
    params, optimizer = trained()
    others, other = clone((params, optimizer))
    assert isinstance(other, LDAdamW)
    assert_same_state(other, optimizer)
    more = grads_of(params, 3, seed=5)
    run(other, others, more)
    assert optimizer.state[params[0]]["step"] == 3
    run(optimizer, params, more)
    assert_same_params(others, params)


def prime(optimizer: LDAdamW) -> None:
    """Create state as `torch.distributed.checkpoint` does: a step with zero gradients at a learning rate of zero."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    learning_rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], torch.Tensor) else 0.0
    take_step(optimizer, params, [torch.zeros_like(param) for param in params])
    for group, lr in zip(optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = lr
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "options", [{}, {"lr": torch.tensor(0.01)}, {"skip_nonfinite": True}, {"error_dtype": "int4"}], ids=str
)
def test_priming_creates_all_state_counts_no_step_and_does_not_change_the_run(options):
    params, others = mixed_params(), mixed_params()
    optimizer, reference = (LDAdamW(some, **{**OPTIONS, **options}) for some in (params, others))
    prime(optimizer)
    assert list(optimizer.state) == params
    assert_same_params(params, others)
    for state in optimizer.state.values():
        assert state["step"] == 0
        assert all(value.isfinite().all() for value in state.values())
        assert all(state[key].count_nonzero() == 0 for key in state if key != "basis")
    run(optimizer, params, grads_of(params, 3))
    run(reference, others, grads_of(others, 3))
    assert_same_state(optimizer, reference)
    assert_same_params(params, others)


@pytest.mark.parametrize("error_dtype", [None, "int8", "int4"])
def test_distributed_checkpoint_round_trip_on_one_process(error_dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 12), torch.nn.Tanh(), torch.nn.Linear(12, 9))
    other_model = copy.deepcopy(model)
    inputs = normal(6, 8, 20)

    def train(some_model, some_optimizer, batches):
        for batch in batches:
            some_optimizer.zero_grad()
            some_model(batch).square().mean().backward()
            some_optimizer.step()

    optimizer = LDAdamW(model.named_parameters(), rank=3, error_dtype=error_dtype)
    train(model, optimizer, inputs[:3])
    optimizer.zero_grad()
    state_dict = get_optimizer_state_dict(model, optimizer)
    other = LDAdamW(other_model.named_parameters(), rank=3, error_dtype=error_dtype)
    primed = get_optimizer_state_dict(other_model, other)
    assert {name: set(state) for name, state in primed["state"].items()} == (
        {name: set(state) for name, state in state_dict["state"].items()}
    )
    other_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other_model, other, state_dict)
    assert_same_state(other, optimizer)
    train(model, optimizer, inputs[3:])
    train(other_model, other, inputs[3:])
    assert_same_params(other_model.parameters(), model.parameters())


def test_parameters_swapped_after_construction_are_the_ones_that_train():
    """Accelerate does so under FSDP2: nothing may be remembered about the first ones."""
    optimizer = LDAdamW([parameter(12, 20)], **OPTIONS)
    swapped = parameter(20, 16, seed=3)
    optimizer.param_groups[0]["params"] = [swapped]
    before = swapped.detach().clone()
    run(optimizer, [swapped], grads_of([swapped], 2))
    assert not torch.equal(swapped, before)
    assert optimizer.state[swapped]["basis"].shape == (16, 2)


def test_a_state_dict_from_before_the_first_step_can_be_loaded_back():
    """Accelerate does so when it wraps an optimizer."""
    params, others = mixed_params(), mixed_params()
    optimizer, reference = LDAdamW(params, **OPTIONS), LDAdamW(others, **OPTIONS)
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, params, grads_of(params, 2))
    run(reference, others, grads_of(others, 2))
    assert_same_params(params, others)
